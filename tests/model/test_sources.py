"""Source tokens, regions and propagation: exact sums, and each edge is what disappears with it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from refusal_lens.attribution.components import heads as head_contributions
from refusal_lens.attribution.sources import attention_patterns, propagation, source_contributions
from refusal_lens.attribution.token_records import Propagation, SourceContributions
from refusal_lens.errors import LabelError, ModelError, PromptError

from .cases import EXACT, KINDS, POST_NORM, PROMPT, direction_of, model_of

MIXED = ["Tell me about the sea and the sky", "Hi", PROMPT]


@pytest.mark.parametrize("architecture", KINDS)
def test_sources_sum_to_the_head(architecture):
    model = model_of(architecture)
    direction = direction_of(model)
    for pos in (-1, -4):
        by_source = source_contributions(model, [PROMPT], direction, pos=pos)
        heads = head_contributions(model, [PROMPT], direction, pos=pos)
        torch.testing.assert_close(by_source.values.sum(-1), heads.values, rtol=0, atol=EXACT)
        torch.testing.assert_close(by_source.head_contributions().values, heads.values, rtol=0, atol=EXACT)
        torch.testing.assert_close(by_source.pattern.sum(-1), torch.ones(3, 4, 1).double(), rtol=0, atol=1e-6)
    # Causal: nothing comes from tokens after the destination.
    assert float(by_source.values[..., -3:].abs().max()) == 0


@pytest.mark.parametrize("architecture", [name for name in KINDS if name not in POST_NORM])
def test_an_edges_share_is_what_disappears_with_it(architecture):
    """An independent route: cut one attention edge and read hook_attn_out (grouped queries included)."""
    model = model_of(architecture)
    direction = direction_of(model)
    layer, head, source = 1, 3, 5
    share = float(source_contributions(model, [PROMPT], direction).values[layer, head, 0, source])
    name = f"blocks.{layer}.hook_attn_out"

    def read():
        return float(model.cache([PROMPT], [name])[name][0, -1] @ direction.unit)

    def cut(pattern, hook):
        new = pattern.clone()
        new[:, head, -1, source] = 0
        return new

    before = read()
    with model.hooks((f"blocks.{layer}.attn.hook_pattern", cut)):
        after = read()
    assert abs(share) > 1e-5
    assert abs(before - after - share) < EXACT


@pytest.mark.parametrize("architecture", KINDS)
def test_what_passes_through_a_pattern(architecture):
    """Along r̂ as source contributions at every destination; its length from all directions of the stream."""
    model = model_of(architecture)
    direction, heads = direction_of(model), ((1, 3), (2, 0))
    found = attention_patterns(model, PROMPT, heads, " now", direction)
    torch.testing.assert_close(found.values, attention_patterns(model, PROMPT, heads, " now").values, rtol=0, atol=0)
    n = len(found.tokens)
    for dest in (n - 1, 4, 0):
        sources = source_contributions(model, [PROMPT], direction, suffixes=[" now"], pos=dest - n)
        for i, (layer, head) in enumerate(heads):
            torch.testing.assert_close(found.along[i, dest], sources.values[layer, head, 0], rtol=0, atol=EXACT)
    squares = torch.zeros_like(found.values)
    for unit in torch.eye(model.d_model, dtype=torch.float64):
        squares += (
            attention_patterns(model, PROMPT, heads, " now", dataclasses.replace(direction, unit=unit)).along ** 2
        )
    torch.testing.assert_close(found.length, squares.sqrt(), rtol=1e-6, atol=1e-9)
    with pytest.raises(LabelError, match="there is no head 'L9H0'"):
        attention_patterns(model, PROMPT, "L9H0")


@pytest.mark.parametrize("architecture", ["qwen3", POST_NORM[0]])
def test_padded_prompts_regions_and_suffixes(architecture):
    model = model_of(architecture, torch.float32)
    direction = direction_of(model)
    suffixes = [" now", "", " please !"]
    found = source_contributions(model, MIXED, direction, suffixes=suffixes)
    torch.testing.assert_close(found.by_region().sum(-1), found.values.sum(-1))
    torch.testing.assert_close(found.attention_by_region().sum(-1), torch.ones(3, 4, 3), rtol=0, atol=1e-5)
    for i, (prompt, suffix) in enumerate(zip(MIXED, suffixes, strict=True)):
        alone = source_contributions(model, [prompt], direction, suffixes=[suffix])
        n = len(alone.tokens[0])
        assert "".join(found.tokens[i]) == model.chat.render(prompt + suffix)
        torch.testing.assert_close(found.values[:, :, i, -n:], alone.values[:, :, 0], rtol=0, atol=1e-5)
        assert float(found.values[:, :, i, :-n].abs().sum()) == 0
        torch.testing.assert_close(found.by_region()[:, :, i], alone.by_region()[:, :, 0], rtol=0, atol=1e-5)
        texts = ["".join(t for t, m in zip(found.tokens[i], found.region_mask(r)[i, -n:], strict=True) if m)
                 for r in ("instruction", "suffix")]  # fmt: skip
        assert texts == [prompt, suffix]
        strip = found.of_prompt(i, [(1, 2), (2, 0)])
        torch.testing.assert_close(strip.sum(), found.values[1, 2, i].sum() + found.values[2, 0, i].sum())
        assert strip.shape == (n,)
    no_suffix = found.by_region()[:, :, 1, found.regions.index("suffix")]
    assert float(no_suffix.abs().max()) == 0


def test_rounding_is_not_taken_for_a_change():
    """bfloat16 values with a large common part that W_O r̂ misses: the parts are small, the rounding of z is not."""
    model = model_of("qwen2", torch.bfloat16)
    bias = model.backend.tl.original_model.model.layers[1].self_attn.v_proj.bias
    with torch.no_grad():
        bias.copy_(100 * torch.randn(len(bias), generator=torch.Generator().manual_seed(0)))
    weight = model.backend.output_weight(1).detach().float()
    per_group = model.n_heads * model.d_head // len(bias)
    common = bias.detach().float().reshape(-1, 1, model.d_head).expand(-1, per_group, -1).reshape(len(weight), 1, -1)
    common = (common @ weight)[:, 0]  # what each head writes of it
    direction = direction_of(model)
    kept = torch.linalg.qr(common.T).Q
    unit = direction.unit.float() - kept @ (kept.T @ direction.unit.float())
    direction = dataclasses.replace(direction, unit=(unit / unit.norm()).double())
    found = source_contributions(model, [PROMPT], direction)
    gap = (found.values.sum(-1) - head_contributions(model, [PROMPT], direction).values)[1].abs()
    assert float((gap / found.values[1].abs().sum(-1)).max()) > 0.04  # far beyond any limit relative to the parts


def test_values_changed_after_their_hook_are_refused():
    model = model_of("llama")
    with (
        model.hooks(("blocks.1.attn.hook_z", lambda z, hook: 1.5 * z)),
        pytest.raises(ModelError, match="layer 1: sources miss"),
    ):
        source_contributions(model, [PROMPT], direction_of(model))
    with pytest.raises(PromptError, match="counts from the start"):
        source_contributions(model, [PROMPT], direction_of(model), pos=3)


@pytest.mark.parametrize("architecture", KINDS)
def test_propagation_adds_up_at_every_token(architecture):
    model = model_of(architecture)
    direction = direction_of(model)
    found = propagation(model, [PROMPT], direction)
    moved = found.projection[:-1] + found.attn + found.mlp
    torch.testing.assert_close(moved, found.projection[1:], rtol=0, atol=EXACT)
    name = "blocks.2.hook_resid_pre"
    expected = model.cache([PROMPT], [name])[name][0] @ direction.unit
    torch.testing.assert_close(found.projection[2, 0], expected, rtol=0, atol=EXACT)


def test_propagation_by_column_and_movers():
    model = model_of("qwen2", torch.float32)
    found = propagation(model, MIXED, direction_of(model))
    assert found.columns[:2] == ("template_pre", "instruction") and "suffix" not in found.columns
    assert len(found.columns) == 2 + len(found.post_labels)
    grid = found.by_column()
    assert grid.shape == (model.n_layers + 1, 3, len(found.columns)) and not grid.isnan().any()
    torch.testing.assert_close(grid[..., -1], found.projection[..., -1])
    alone = propagation(model, [MIXED[0]], direction_of(model)).by_column()
    torch.testing.assert_close(grid[:, 0], alone[:, 0], rtol=0, atol=1e-5)
    assert found.projection[:, 1].isnan().any() and not found.projection[:, 0].isnan().any()
    movers = found.movers(5)
    assert len(movers) == 5 and movers["mean"].abs().is_monotonic_decreasing
    top = movers.iloc[0]
    what, column = top["component"].split()[1], found.columns.index(top["column"])
    assert abs(float(found.by_column(what)[top["layer"], :, column].mean()) - top["mean"]) < 1e-6


def test_attention_patterns_of_chosen_heads():
    model = model_of("qwen3", torch.float32)
    found = attention_patterns(model, PROMPT, [(2, 1), (0, 3)], suffix=" now")
    by_source = source_contributions(model, [PROMPT], direction_of(model), suffixes=[" now"])
    torch.testing.assert_close(found.values[0, -1], by_source.pattern[2, 1, 0])
    torch.testing.assert_close(found.values[1, -1], by_source.pattern[0, 3, 0])
    assert found.labels == ("L2H1", "L0H3") and found.tokens == by_source.tokens[0]


def test_records_survive_saving(tmp_path):
    model = model_of("qwen2", torch.float32)
    sources = source_contributions(model, MIXED, direction_of(model))
    again = SourceContributions.load(sources.save(tmp_path / "sources"))
    assert torch.equal(again.by_region(), sources.by_region()) and again.tokens == sources.tokens
    path = propagation(model, MIXED, direction_of(model))
    loaded = Propagation.load(path.save(tmp_path / "path"))
    assert torch.equal(loaded.by_column(), path.by_column()) and loaded.columns == path.columns
