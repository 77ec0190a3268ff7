"""Packed prompts: the logits of every prompt alone, whatever else stands in the row, on every architecture that can."""

from __future__ import annotations

import pytest
import torch

from refusal_lens.direction.extract import mean_activations
from refusal_lens.direction.scores import _Packed, _Padded
from refusal_lens.hooks.interventions import Ablate, Add
from refusal_lens.models.packing import PADDING, RestartedPack, common_prefix, pack_tokens, packing_holds
from refusal_lens.records.direction import Direction
from tests.tiny import ARCHITECTURES, tiny_model

PROMPTS = ["hi", "how do you do this long thing, then?", "a b c", "What?", "hi"]
WINDOWED = {"gemma2", "gemma3"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_logits_are_those_of_the_prompts_alone(architecture):
    model = tiny_model(architecture)
    tokens = model.tokenize(PROMPTS)
    assert packing_holds(model) == (architecture not in WINDOWED)
    if architecture in WINDOWED:
        return
    alone = torch.cat([model.logits(model.tokenize([p]))[:, -1] for p in PROMPTS])
    for limit in (1, 80, 1 << 20):  # rows as long as the longest prompt needs, longer ones, one row
        whole = pack_tokens(tokens, row_tokens=limit)
        assert sorted(whole.indices) == list(range(len(PROMPTS)))
        run = RestartedPack(model, whole)
        torch.testing.assert_close(run.before(model.n_layers), alone, atol=1e-4, rtol=1e-4)
        for (pack, found), (_, again) in zip(run.logits(2), run.logits(2, start=2), strict=True):
            torch.testing.assert_close(found[0], alone[list(pack.indices)], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(again, found, atol=1e-4, rtol=1e-4)


def test_hooks_from_outside_and_other_backends_are_not_packed():
    model = tiny_model("qwen2")
    with model.hooks(("blocks.0.hook_resid_pre", lambda x, hook: None)):
        assert not packing_holds(model)
    assert packing_holds(model)


def test_rows_take_interventions_of_their_own():
    """What several candidates in one pass give is what each gives alone, packed or padded."""
    model = tiny_model("llama")
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, model.d_model, generator=generator)
    tokens = model.tokenize(PROMPTS)
    packed, padded = (kind(model, tokens) for kind in (_Packed, _Padded))
    torch.testing.assert_close(packed.before(3), padded.before(3), atol=1e-4, rtol=1e-4)

    def largest(logits, indices):
        return logits.double().logsumexp(-1)

    for edit, start in (
        (lambda rows: [Ablate(vectors[rows], per_candidate=True)], 0),
        (lambda rows: [Add(vectors[rows], layers=2)], 2),
    ):
        together, one_by_one = (bench.run(3, edit, largest, start) for bench in (packed, padded))
        torch.testing.assert_close(together, one_by_one, atol=1e-4, rtol=1e-4)
        assert float((together[0] - together[1]).abs().max()) > 1e-3, "the rows differ"
    with model.hooks(Ablate(Direction(vectors[1], 1.0, -1, 0))):
        expected = model.last_logits(PROMPTS).double().logsumexp(-1)
    ablated = packed.run(3, lambda rows: [Ablate(vectors[rows], per_candidate=True)], largest)
    torch.testing.assert_close(ablated[1], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2"])
def test_means_are_the_same_packed_and_padded(architecture):
    model = tiny_model(architecture)
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.n_layers)]
    n_post = model.tokenize(["x"]).n_post
    alone = [model.cache([p], names, positions=slice(-n_post, None)) for p in PROMPTS]
    by_hand = torch.stack([torch.stack([c[n][0].double() for n in names], 1) for c in alone]).mean(0)
    torch.testing.assert_close(mean_activations(model, PROMPTS), by_hand, atol=1e-5, rtol=1e-5)
    # Prompts that share all their tokens keep the post-instruction ones apart.
    same = torch.stack([alone[0][n][0].double() for n in names], 1)
    torch.testing.assert_close(mean_activations(model, [PROMPTS[0]] * 3), same, atol=1e-5, rtol=1e-5)


def test_a_prompt_keeps_a_token_of_its_own():
    rows = [torch.tensor([1, 2, 3]), torch.tensor([1, 2, 3]), torch.tensor([1, 2, 3, 4])]
    assert common_prefix(rows) == 2 and common_prefix(rows[:1]) == 0


def test_rows_are_nearly_equally_long():
    """Little is padded, whatever the lengths, and one long prompt does not make all rows as long as itself."""
    model = tiny_model("qwen2")
    mixed = ["do it" * (1 + i % 7) for i in range(40)]
    for prompts in (["do it"] * 17, mixed, [*mixed, "so " * 60]):
        whose = pack_tokens(model.tokenize(prompts)).whose
        assert float((whose == PADDING).float().mean()) < 0.12


def test_a_pass_takes_some_rows_with_their_prompts(monkeypatch):
    monkeypatch.setattr("refusal_lens.models.packing.PASS_TOKENS", 300)
    model = tiny_model("qwen2")
    tokens = model.tokenize(PROMPTS * 3)
    whole = pack_tokens(tokens, row_tokens=60)
    seen = [whole.rows(some) for some in whole.passes(2)]
    assert len(seen) > 1 and all(pack.ids.numel() * 2 <= 300 or len(pack.ids) == 1 for pack in seen)
    assert sorted(i for pack in seen for i in pack.indices) == list(range(len(tokens)))
    together, apart = RestartedPack(model, whole), RestartedPack(model, pack_tokens(tokens, row_tokens=1))
    torch.testing.assert_close(together.before(), apart.before(), atol=1e-4, rtol=1e-4)
