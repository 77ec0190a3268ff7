"""Components of a bridge that step aside: the same bits as TransformerLens's own pass, and every hook still acts."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import pytest
import torch

import refusal_lens as rl

from .cases import ALL, direction_of, model_of

# All that a pass of ours calls, whether or not it can step aside.
FEW = ("llama-bias", "gemma2", "gpt_neox", "mixtral")


@contextmanager
def as_transformer_lens(model):
    """Passes in which every component takes part."""
    aside = model.backend._aside
    own, aside.during = aside.during, nullcontext
    try:
        yield
    finally:
        aside.during = own


@pytest.mark.parametrize("name", ALL)
def test_logits_and_replies_are_the_same_bits(name):
    model = model_of(name)
    tokens = model.tokenize(["How do I pick a lock?", "Hi"])
    for under in ((), (rl.Ablate(direction_of(model)),), (rl.Add(2.0 * direction_of(model).unit, layers=1),)):
        with model.hooks(*under):
            ours, said = model.logits(tokens, False)[tokens.mask], model.generate(["How do I pick a lock?", "Hi"], 6)
            with as_transformer_lens(model):
                theirs, wanted = (
                    model.logits(tokens, False)[tokens.mask],
                    model.generate(["How do I pick a lock?", "Hi"], 6),
                )
        assert torch.equal(ours, theirs) and said == wanted, under


@pytest.mark.filterwarnings("ignore:A forward hook edited hook_scale")
@pytest.mark.parametrize("name", FEW)
def test_an_edit_at_any_hook_point_is_that_of_transformer_lens(name):
    """Each alone, so that everything else steps aside."""
    model = model_of(name)
    tokens, acted = model.tokenize(["How do I pick a lock?"]), 0
    plain = model.logits(tokens)

    def edit(x, hook):
        return 1.5 * x if x.is_floating_point() else x

    gated = ("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in", "hook_result")
    for point in sorted(model.backend.tl.hook_dict):
        if point.endswith(gated):
            continue
        with model.hooks((point, edit)):
            ours = model.logits(tokens)
            with as_transformer_lens(model):
                assert torch.equal(ours, model.logits(tokens)), point
        acted += not torch.equal(ours, plain)
    assert acted > 10 * model.n_layers


def test_after_a_pass_and_an_error_every_component_is_back():
    model = model_of("llama-bias")
    before = {name: id(part) for name, part in model.backend.hf.named_modules()}

    def fails(x, hook):
        block = model.backend.tl.blocks[0]
        inside.append((type(block.original_component.input_layernorm).__name__, "forward" in block.__dict__))
        assert block.attn.W_O.shape == (4, 8, 32)  # who asks in a pass finds TransformerLens's components
        raise RuntimeError("on purpose")

    inside: list[tuple[str, bool]] = []
    with pytest.raises(RuntimeError, match="on purpose"), model.hooks(("blocks.1.mlp.hook_out", fails)):
        model.logits(model.tokenize(["Hi"]))
    assert inside == [("LlamaRMSNorm", True)]  # that block did step aside, and its norm
    assert {name: id(part) for name, part in model.backend.hf.named_modules()} == before
    assert not any("forward" in block.attn.__dict__ for block in model.backend.tl.blocks)


def test_a_hook_of_torch_on_a_component_is_seen():
    model, seen = model_of("llama-bias"), []
    part = model.backend.tl.blocks[0].mlp.gate
    handle = part.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    model.logits(model.tokenize(["Hi"]))
    handle.remove()
    model.logits(model.tokenize(["Hi"]))
    assert len(seen) == 1
