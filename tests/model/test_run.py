"""``model.run``: several readers in one pass, packed and padded rows, interventions, and where a pass ends."""

from __future__ import annotations

import pytest
import torch

from refusal_lens import Ablate
from refusal_lens.attribution.components import component_contributions, heads
from refusal_lens.engines.local import LocalEngine
from refusal_lens.errors import DirectionError, ModelError, PromptError
from refusal_lens.hooks.attention_readers import AttentionByRegion, Components, Heads, RegionShare, Sources
from refusal_lens.hooks.pattern_readers import Pattern
from refusal_lens.hooks.readers import Activations, Cache, NextLogits, Residual
from refusal_lens.models import running
from refusal_lens.records.direction import Direction
from refusal_lens.records.labels import REGIONS
from refusal_lens.refusal.metric import RefusalMetric, refusal_metric
from refusal_lens.refusal.records import RefusalTokens
from refusal_lens.tensors import random_unit
from tests.tiny import tiny_model

PROMPTS = ["hi", "how do you do this long thing, then?", "a b c", "What?", "hi"]
SUFFIXES = [" a", " abc", " a b", " now", " please do"]
TOKENS = RefusalTokens((40, 41), ("a", "b"))


def direction_of(model) -> Direction:
    return Direction(random_unit(model.d_model, 3), 2.0, -1, 1)


def readers_of(model):
    d = direction_of(model)
    sites = ["blocks.1.hook_resid_pre", "blocks.2.attn.hook_pattern"]
    return [
        Residual(d), Residual(d, "instruction"), Activations(), Heads(d), Components(d), Sources(d),
        AttentionByRegion(), RegionShare(((0, 1), (2, 0))), Pattern(((1, 0), (1, 1))), Cache(sites), NextLogits(),
        RefusalMetric(TOKENS),
    ]  # fmt: skip


def flat(found) -> list[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        return [found]
    return list(found.values()) if isinstance(found, dict) else list(found)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_readers_together_are_each_alone_and_on_an_engine(architecture):
    model = tiny_model(architecture)
    readers = readers_of(model)
    seen: list[int] = []
    rows = model.run(PROMPTS, SUFFIXES, read=readers, on_batch=seen.append)
    assert sum(seen) == len(PROMPTS) and len(rows) == len(readers)
    sharded = model.run(PROMPTS, SUFFIXES, read=readers, engine=LocalEngine(model))
    for reader, again in zip(readers, sharded, strict=True):
        (alone,) = model.run(PROMPTS, SUFFIXES, read=reader)
        for x, y, z in zip(flat(rows[reader]), flat(alone), flat(again), strict=True):
            assert torch.equal(x, y) and torch.equal(x, z), reader
            assert torch.isfinite(x).all()


def test_items_of_an_engine_come_together_in_prompt_order(monkeypatch):
    monkeypatch.setattr(running, "SHARD", 2)
    model = tiny_model("llama")
    readers = readers_of(model)
    whole = model.run(PROMPTS, SUFFIXES, read=readers)
    sharded = model.run(PROMPTS, SUFFIXES, read=readers, engine=LocalEngine(model))
    for reader, found in zip(readers, sharded, strict=True):
        for x, y in zip(flat(whole[reader]), flat(found), strict=True):
            torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)
    with pytest.raises(PromptError, match="as text"):
        model.run(model.tokenize(PROMPTS), read=NextLogits(), engine=LocalEngine(model))


def test_packed_rows_give_what_padded_ones_give():
    model = tiny_model("qwen2")
    readers = [Activations(), NextLogits(), RefusalMetric(TOKENS)]
    padded, packed = (model.run(PROMPTS, read=readers, pack=pack) for pack in (False, True))
    assert model.packs
    for x, y in zip(padded, packed, strict=True):
        torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)
    # An intervention acts in packed rows too.
    under = [Ablate(direction_of(model))]
    padded, packed = (model.run(PROMPTS, read=readers, under=under, pack=pack) for pack in (False, True))
    for x, y in zip(padded, packed, strict=True):
        torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)


def test_the_verdict_on_packing_belongs_to_the_model():
    first, other = tiny_model("qwen2"), tiny_model("gemma2")
    for model in (first, other):
        model.packs = None
        model.run(PROMPTS[:1], read=NextLogits(), pack=True)
    assert first.packs is True and other.packs is None, "gemma2 has windows and is not tried"


@pytest.mark.parametrize("reader", [NextLogits(), Activations()])
def test_under_is_the_context(reader):
    model = tiny_model("llama")
    edit = Ablate(direction_of(model))
    (plain,), (under,) = model.run(PROMPTS, read=reader), model.run(PROMPTS, read=reader, under=edit)
    with model.hooks(edit):
        (inside,) = model.run(PROMPTS, read=reader)
    assert torch.equal(under, inside) and not torch.equal(under, plain)
    metric = refusal_metric(model, PROMPTS, TOKENS, under=[edit])
    with model.hooks(edit):
        assert torch.equal(metric, refusal_metric(model, PROMPTS, TOKENS))


def test_one_string_is_one_prompt():
    model = tiny_model("llama")
    (logits,) = model.run("how do you do", read=NextLogits())
    assert torch.equal(logits, model.last_logits(["how do you do"]))
    assert logits.shape == (1, model.d_vocab)
    assert heads(model, "how do you do", direction_of(model)).prompts == ("how do you do",)


def test_layers_after_the_last_hook_that_is_read_do_not_run():
    model = tiny_model("llama")
    fired: list[str] = []
    count = [(f"blocks.{i}.hook_resid_pre", lambda x, hook: fired.append(hook.name)) for i in range(model.n_layers)]
    with model.hooks(*count):
        model.run("hi", read=Cache(["blocks.1.hook_resid_pre"]))
        assert len(fired) == 2
        model.run("hi", read=[Cache(["blocks.0.hook_resid_pre"]), NextLogits()])
        assert len(fired) == 2 + model.n_layers


def test_cache_is_run_with_cache():
    model = tiny_model("llama")
    names = ["blocks.1.hook_resid_pre", "blocks.2.attn.hook_z", "blocks.2.attn.hook_pattern"]
    (found,) = model.run(PROMPTS, read=Cache(names))
    tokens = model.tokenize(PROMPTS)
    for i, ids in enumerate(tokens.ids):
        real = ids[tokens.mask[i]][None]
        _, expected = model.tl.run_with_cache(real, names_filter=names)
        n = real.shape[1]
        resid, pattern = found[names[0]][i], found[names[2]][i]
        torch.testing.assert_close(resid[-n:], expected[names[0]][0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(pattern[:, -n:, -n:], expected[names[2]][0], atol=1e-5, rtol=1e-5)
        assert not resid[:-n].any() and not pattern[:, :-n].any() and not pattern[..., :-n].any()
    (last,) = model.run(PROMPTS, read=Cache(names[:1], slice(-2, None)))
    assert torch.equal(last[names[0]], found[names[0]][:, -2:])


def test_readers_by_hand():
    """Each number of a reader from raw activations of one prompt."""
    model = tiny_model("llama")
    d, prompt, suffix = direction_of(model), PROMPTS[1], SUFFIXES[1]
    tokens = model.tokenize(prompt, suffix)
    names = [f"blocks.{i}.{s}" for i in range(model.n_layers) for s in ("hook_resid_pre", "attn.hook_pattern")]
    cached = model.cache(tokens, names)
    shares, attention, at = RegionShare(((0, 1),)), AttentionByRegion(), Residual(d, "instruction")
    rows = model.run(prompt, suffix, read=[shares, attention, at])
    start, stop = tokens.spans[0].instruction
    along = cached["blocks.2.hook_resid_pre"][0] @ d.unit
    assert float(rows[at].projection[2, 0]) == pytest.approx(float(along[stop - 1]), abs=1e-5)
    assert float(rows[at].highest[2, 0]) == pytest.approx(float(along[start:stop].max()), abs=1e-5)
    for k, name in enumerate(REGIONS):
        first, last = getattr(tokens.spans[0], name)
        expected = cached["blocks.1.attn.hook_pattern"][0, :, -tokens.n_post :, first:last].sum(-1)
        torch.testing.assert_close(rows[attention][1, :, :, k, 0], expected, atol=1e-5, rtol=1e-5)
    by_region = [next(iter(model.run(prompt, suffix, read=RegionShare(((0, 1),), name)))) for name in REGIONS]
    assert float(sum(x.top[0] for x in by_region)) == pytest.approx(1, abs=1e-5), "the shares of all regions"
    torch.testing.assert_close(sum(x.layers for x in by_region), torch.ones(model.n_layers, 1), atol=1e-4, rtol=1e-4)
    assert torch.equal(rows[shares].top, by_region[REGIONS.index("suffix")].top)
    parts = component_contributions(model, prompt, d, suffixes=suffix)
    assert torch.equal(parts.heads, heads(model, prompt, d, suffixes=suffix).values)


def test_what_cannot_be_read_is_said():
    model = tiny_model("llama")
    with pytest.raises(ModelError, match="no hook point"):
        model.run("hi", read=Cache(["blocks.0.hook_nothing"]))
    with pytest.raises(DirectionError, match="entries"):
        model.run("hi", read=Heads(Direction(torch.ones(7) / 7**0.5, 1.0, -1, 0)))
    with pytest.raises(PromptError, match="before the first token"):
        model.run("hi", read=Residual(direction_of(model), -1000))
    with pytest.raises(PromptError, match="no suffix"):
        model.run("hi", read=Residual(direction_of(model), "suffix"))
    reader = NextLogits()
    model.run("hi", read=reader)
    assert not hasattr(reader, "rows"), "a reader stays a value"


def test_the_batch_under_way_is_known_to_interventions():
    model = tiny_model("llama")
    seen = []
    with model.hooks(("blocks.0.hook_resid_pre", lambda x, hook: seen.append((model.running, x.shape[1])))):
        model.run(PROMPTS, read=NextLogits())
        model.generate("hi", 2)
    assert model.running is None and all(batch is not None for batch, _ in seen)
    assert all(width in (batch.ids.shape[1], 1) for batch, width in seen)
