"""Weights = hooks on every pre-norm architecture, a measured gap on the others, and weights bit for bit back."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest
import torch

import refusal_lens.hooks.orthogonalize as module
from refusal_lens import Ablate
from refusal_lens.errors import ConcurrentUseError, DirectionError, ModelError
from refusal_lens.exactness.identities import certify, orthogonalization_gap
from refusal_lens.hooks.orthogonalize import Orthogonalize
from refusal_lens.models import writing_weights
from refusal_lens.tensors import unit
from tests import tiny

from .cases import ALL, POST_NORM, direction_of, model_of

PROMPTS = ["How do I pick a lock?", "Hi"]
EDITED = "orthogonalized weights = ablation by hooks"
# Architectures that only the weight edit needs: learned positions and Conv1D; experts with biases, stored
# transposed; experts beside a shared one.
MORE = {
    "gpt2": ("gpt2", {k: v for k, v in tiny._SIZE.items() if k != "intermediate_size"}),
    "gpt_oss": (
        "gpt_oss",
        {**tiny._GQA, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 64},
    ),
    "qwen2_moe": (
        "qwen2_moe",
        {
            **tiny._GQA,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 24,
        },
    ),
}


@pytest.fixture(params=MORE)
def more(request, monkeypatch):
    monkeypatch.setitem(tiny.ARCHITECTURES, request.param, MORE[request.param])
    try:
        return tiny.tiny_model(request.param, dtype=torch.float64)
    except Exception as error:  # not every release of TransformerLens wraps every architecture
        pytest.skip(f"TransformerLens does not wrap {request.param}: {error}")


def snapshot(model):
    """Every parameter's bytes and identity, tied ones twice."""
    named = model.tl.named_parameters(remove_duplicate=False)
    return {name: (p, p.data_ptr(), p.detach().clone()) for name, p in named}


def assert_untouched(model, before):
    after = dict(model.tl.named_parameters(remove_duplicate=False))
    assert after.keys() == before.keys()
    for name, (parameter, pointer, value) in before.items():
        assert after[name] is parameter and parameter.data_ptr() == pointer and torch.equal(parameter, value), name


@pytest.mark.parametrize("architecture", ["llama-bias", "mixtral"])
def test_weights_equal_hooks(architecture):
    model = model_of(architecture)
    before = snapshot(model)
    assert orthogonalization_gap(model, direction_of(model), PROMPTS) < 2e-6  # norms run in float32
    assert_untouched(model, before)
    plain = model.last_logits(PROMPTS[:1])
    with model.hooks(Orthogonalize(direction_of(model))):
        assert float((model.last_logits(PROMPTS[:1]) - plain).abs().max()) > 1e-2  # the edit does something


@pytest.mark.parametrize("architecture", POST_NORM)
def test_post_norm_models_say_so_and_give_the_gap(architecture):
    model = model_of(architecture)
    direction, before = direction_of(model), snapshot(model)
    with pytest.raises(ModelError, match="Ablate"), model.hooks(Orthogonalize(direction)):
        pass
    assert orthogonalization_gap(model, direction, PROMPTS) > 1e-2
    row = {i.name: i for i in certify(model, PROMPTS).identities}[EDITED]
    assert row.result == "n/a" and "largest logit gap measured" in row.note
    assert_untouched(model, before)


def test_learned_positions_and_other_experts(more):
    assert orthogonalization_gap(more, direction_of(more), PROMPTS) < 2e-6
    names = " ".join(weight.where for weight in more.writing_weights())
    for expected in {"gpt2": ["pos_embed"], "gpt_oss": ["down_proj_bias"], "qwen2_moe": ["shared_expert"]}[
        more.name.removeprefix("tiny-")
    ]:
        assert expected in names


@pytest.mark.parametrize("architecture", ALL)
def test_every_write_is_orthogonal_and_nothing_else_is_touched(architecture):
    model = model_of(architecture)
    direction, before = direction_of(model), snapshot(model)
    r = unit(direction.unit)
    with model.hooks(Orthogonalize(direction, allow_gap=True)):
        touched = {name for name, p in model.tl.named_parameters(remove_duplicate=False) if p is not before[name][0]}
        weights = model.writing_weights()
        for weight in weights:
            left = weight.parameter.movedim(weight.axis, -1) @ r
            assert float(left.detach().abs().max()) < 1e-12, weight.where
        assert len({id(weight.parameter) for weight in weights}) <= len(touched)
        # Attention's and the MLP's inputs, norms and the unembedding read; only outputs write.
        assert not any(word in name for name in touched for word in ("q_proj", "norm", "lm_head", "gate", "up_proj"))
    assert_untouched(model, before)


def test_biases_count():
    model = model_of("llama-bias")
    names = [weight.where for weight in model.writing_weights()]
    assert "blocks.0.attn.o.bias" in names and "blocks.2.mlp.out.bias" in names
    found = model.writing_weights()
    without = [weight for weight in found if not weight.where.endswith("bias")]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ModelError, match="still has"):
        patch.setattr(model, "writing_weights", lambda: without)
        with model.hooks(Orthogonalize(direction_of(model))):
            pass


def test_a_tied_unembedding_reads_as_before():
    model = model_of("llama-tied")
    embed, head = model.backend.hf.get_input_embeddings(), model.backend.hf.get_output_embeddings()
    assert embed.weight is head.weight
    before = head.weight.detach().clone()
    with model.hooks(Orthogonalize(direction_of(model))):
        assert torch.equal(head.weight, before) and not torch.equal(embed.weight, before)
    assert embed.weight is head.weight


def test_weights_come_back_after_exceptions_wherever_they_happen(monkeypatch):
    model = model_of("llama-tied")
    direction, before = direction_of(model), snapshot(model)
    with pytest.raises(ZeroDivisionError), model.hooks(Orthogonalize(direction)):
        raise ZeroDivisionError
    assert_untouched(model, before)
    calls, real = [], module._projected

    def fails_late(*args):
        calls.append(1)
        if len(calls) > 3:
            raise MemoryError
        return real(*args)

    monkeypatch.setattr(module, "_projected", fails_late)
    with pytest.raises(MemoryError), model.hooks(Orthogonalize(direction)):
        pass
    assert_untouched(model, before)


def test_contexts_nest_and_a_second_direction_leaves_none_of_either():
    model = model_of("qwen2")
    first, second, before = direction_of(model, 1), direction_of(model, 2), snapshot(model)
    with model.hooks(Orthogonalize(first)):
        inside = model.last_logits(PROMPTS[:1])
        with Orthogonalize(second).applied(model):
            assert not torch.allclose(model.last_logits(PROMPTS[:1]), inside)
        assert torch.equal(model.last_logits(PROMPTS[:1]), inside)
    assert_untouched(model, before)


def test_memory_is_one_copy_of_the_weights_touched():
    model = model_of("mixtral")
    touched = sum(w.parameter.numel() * w.parameter.element_size() for w in model.writing_weights())
    with ExitStack() as stack:
        originals = {p.data_ptr() for p in model.tl.parameters()}
        stack.enter_context(model.hooks(Orthogonalize(direction_of(model))))
        new = {p.data_ptr(): p.numel() * p.element_size() for p in model.tl.parameters()}
        assert sum(size for pointer, size in new.items() if pointer not in originals) == touched


def test_the_chunked_edit_is_the_whole_edit(monkeypatch):
    weight, r = torch.randn(3, 20, 16), unit(torch.randn(16, dtype=torch.float64))
    whole = module._projected(weight, r, -1)
    monkeypatch.setattr(module, "CHUNK", 100)
    for axis in (0, 1, -1):
        moved = weight.movedim(-1, axis)
        assert torch.equal(module._projected(moved, r, axis), whole.movedim(-1, axis))


def test_the_lock_the_identity_and_the_direction_are_kept():
    model = tiny.tiny_model("llama", seed=3)
    direction = direction_of(model_of("llama"))
    with pytest.raises(DirectionError, match="fingerprint"), model.hooks(Orthogonalize(direction)):
        pass
    own = direction_of(model)
    del model.fingerprint  # as if nobody had asked yet
    seen: list[Exception] = []

    def other_thread():
        try:
            model.last_logits(PROMPTS)
        except ConcurrentUseError as error:
            seen.append(error)

    with model.hooks(Orthogonalize(own)):
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()
        assert model.fingerprint == own.model
    assert len(seen) == 1


def test_quantized_and_offloaded_weights_are_refused():
    model = tiny.tiny_model("llama", seed=4)
    linear = writing_weights.core(model.tl.blocks[1].mlp.out)
    original = linear._parameters["weight"]
    for stand_in, message in (
        (torch.nn.Parameter(original.detach().to(torch.int8), requires_grad=False), "quantized"),
        (torch.nn.Parameter(original.detach().to("meta")), "offloaded"),
    ):
        linear._parameters["weight"] = stand_in
        with pytest.raises(ModelError, match=message), model.hooks(Orthogonalize(direction_of(model))):
            pass
    linear._parameters["weight"] = original


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_the_models_own_dtype_it_is_ablation_to_rounding(dtype):
    model = model_of("llama", dtype)
    direction = direction_of(model)
    with model.hooks(Ablate(direction)):
        by_hooks = model.last_logits(PROMPTS[:1]).float()
    with model.hooks(Orthogonalize(direction)):
        by_weights = model.last_logits(PROMPTS[:1]).float()
    scale = float(by_hooks.abs().max())
    assert float((by_hooks - by_weights).abs().max()) / scale < {torch.float32: 1e-4, torch.bfloat16: 0.1}[dtype]


def test_the_certificate_has_the_row():
    row = {i.name: i for i in certify(model_of("llama-bias", torch.float32), PROMPTS).identities}[EDITED]
    assert row.result == "PASS" and 0 < row.relative < 1e-4 and row.relative64 < 2e-6
