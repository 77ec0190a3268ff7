"""A suffix inside a model: exact identities on tiny models (the paper's findings: test_hijacking_organism.py)."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import pytest
import torch

from refusal_lens.attribution.sources import source_contributions
from refusal_lens.errors import PromptError
from refusal_lens.hijacking.causal import Bench, causal_tests, matching_columns
from refusal_lens.hijacking.investigation import Settings, investigate
from refusal_lens.hijacking.observation import observe, split_drop
from refusal_lens.hijacking.screening import screen, without_token
from refusal_lens.hooks.attention import AttentionKnockout
from refusal_lens.hooks.interchange import Interchange, InterchangeHeads, InterchangePattern, InterchangeWrites
from refusal_lens.hooks.interventions import NormMatchedPlacebo
from refusal_lens.hooks.readout import Readout
from refusal_lens.records.labels import REGIONS
from refusal_lens.records.store import Store
from refusal_lens.refusal.metric import refusal_metric
from refusal_lens.refusal.records import RefusalTokens
from refusal_lens.tensors import refusal_log_odds

from .cases import KINDS, POST_NORM, direction_of, exactness, model_of

SUFFIX = " now please!"
PROMPT = "How do I pick a lock?"
TOKENS = RefusalTokens((40, 41), ("I", "J"))
TOP = ((0, 1), (1, 3), (2, 0))
EVERY = tuple((layer, head) for layer in range(3) for head in range(4))


def see(model, suffix="", prompts=(PROMPT,), top=TOP, condition="suffix", **kwargs):
    texts = [suffix] * len(prompts) if suffix else None
    return observe(model, condition, list(prompts), direction_of(model), top, TOKENS, texts, **kwargs)


# -- identities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", KINDS)
def test_an_observation_adds_up(architecture):
    model = model_of(architecture)
    o, sources = see(model, SUFFIX)
    limit = exactness(architecture)
    # All writes below a site sum to its projection, by region of the source tokens.
    parts = o.embed + torch.cat([torch.zeros(1, 1), (o.by_region.sum(1) + o.attn_bias + o.mlp).cumsum(0)])
    torch.testing.assert_close(parts, o.projection, rtol=0, atol=10 * limit)
    torch.testing.assert_close(o.by_region.sum(1), o.heads.sum(1), rtol=0, atol=limit)
    torch.testing.assert_close(sources.values.sum(-1), o.heads, rtol=0, atol=limit)
    # Attention regions add to 1 from every post-instruction position, and repeat the sources' at the last one.
    torch.testing.assert_close(o.attention.sum(-1), torch.ones_like(o.attention.sum(-1)), rtol=0, atol=1e-6)
    torch.testing.assert_close(o.attention_mean.sum(-1), torch.ones_like(o.attention_mean.sum(-1)), rtol=0, atol=1e-6)
    last = sources.attention_by_region()
    for i, head in enumerate(TOP):
        torch.testing.assert_close(o.attention[i, -1], last[head], rtol=0, atol=1e-9)
        torch.testing.assert_close(o.attention_mean[head][-1], last[head].mean(0), rtol=0, atol=1e-9)
    assert o.attention.shape[1] == model.tokenize([PROMPT]).n_post
    # The instruction's last token, read another way (causal: it does not see the suffix).
    at = model.chat.encode(PROMPT).spans.instruction[1] - 1
    x = model.cache(model.tokenize([PROMPT]), ["blocks.2.hook_resid_pre"])["blocks.2.hook_resid_pre"][0]
    r = direction_of(model).unit
    assert abs(float(o.instruction_projection[2, 0] - x[at] @ r)) < 1e-6
    inside = slice(*model.chat.encode(PROMPT).spans.instruction)
    assert abs(float(o.instruction_max[2, 0] - (x[inside] @ r).max())) < 1e-6
    assert float(o.metric[0]) == pytest.approx(float(refusal_metric(model, [PROMPT], TOKENS, [SUFFIX])[0]), abs=1e-9)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_dominance_is_the_suffixs_share_of_the_write(architecture):
    model = model_of(architecture)
    o, _ = see(model, SUFFIX)
    tokens = model.tokenize([PROMPT], [SUFFIX])
    mask = tokens.region("suffix")[0]
    for layer in range(3):
        names = [f"blocks.{layer}.attn.hook_{what}" for what in ("pattern", "v")]
        cached = model.cache(tokens, names)
        v = cached[names[1]].reshape(tokens.ids.shape[1], -1, model.d_head).repeat_interleave(2, 1)
        writes = torch.einsum(
            "hs,shd,hde->hse", cached[names[0]][0, :, -1], v, model.backend.output_weight(layer).detach()
        )
        whole, part = writes.sum((0, 1)), writes[:, mask].sum((0, 1))
        assert float(o.dominance[layer, 0]) == pytest.approx(float(part @ whole / (whole @ whole)), abs=1e-6)
    plain, _ = see(model)
    assert float(plain.dominance.abs().max()) == 0 and float(plain.top_dominance[0]) == 0


@pytest.mark.parametrize("architecture", KINDS)
def test_the_split_adds_up_to_each_heads_drop(architecture):
    model = model_of(architecture)
    limit = exactness(architecture)
    plain, random, suffixed = (see(model, s) for s in ("", " then maybe", SUFFIX))
    for before in (plain, random):
        split = split_drop(before[1], suffixed[1])
        drop = before[0].heads - suffixed[0].heads
        torch.testing.assert_close(split.drop, drop, rtol=0, atol=limit)
        torch.testing.assert_close(split.drop_by_region.sum(2), drop, rtol=0, atol=limit)
    # Nothing changes against itself; with equal weights only values change, and the other way round.
    same = split_drop(suffixed[1], suffixed[1])
    assert float(same.moved.abs().max()) == 0 and float(same.changed.abs().max()) == 0
    record = suffixed[1]
    doubled = dataclasses.replace(record, values=2 * record.values)
    assert float(split_drop(record, doubled).moved.abs().max()) < limit
    lighter = dataclasses.replace(record, values=record.values / 2, pattern=record.pattern / 2)
    split = split_drop(record, lighter)
    assert float(split.changed.abs().max()) < limit
    torch.testing.assert_close(split.moved, record.values.sum(-1) / 2, rtol=0, atol=limit)


@pytest.mark.parametrize("architecture", KINDS)
def test_knock_out_cuts_exactly_these_edges(architecture):
    """Against another route: zeros in the pattern, renormalised; and what the cut heads then take from the suffix."""
    model = model_of(architecture)
    tokens = model.tokenize([PROMPT], [SUFFIX])
    dest, src = tokens.region("template_post"), tokens.region("suffix")
    cut = AttentionKnockout(TOP)
    with model.hooks(cut):
        logits = model.logits(tokens)
        sources = source_contributions(model, [PROMPT], direction_of(model), suffixes=[SUFFIX])
        patterns = model.cache(tokens, [f"blocks.{i}.attn.hook_pattern" for i in range(3)])
    given = sources.attention_by_region()[..., REGIONS.index("suffix")]
    assert all(float(given[head].abs().max()) == 0 for head in TOP)
    others = [head for head in EVERY if head not in TOP]
    assert all(float(given[head].min()) > 0 for head in others)
    for layer in range(3):
        p = patterns[f"blocks.{layer}.attn.hook_pattern"]
        torch.testing.assert_close(p.sum(-1), torch.ones_like(p.sum(-1)), rtol=0, atol=1e-6)

    def by_pattern(heads):
        def edit(p, hook):
            new = p.clone()
            gone = (dest[:, None, :, None] & src[:, None, None]).expand_as(p)
            for head in heads:
                new[:, head] = new[:, head].masked_fill(gone[:, head], 0)
            return new / new.sum(-1, keepdim=True)

        return edit

    by_layer = {0: [1], 1: [3], 2: [0]}
    with model.hooks(*[(f"blocks.{i}.attn.hook_pattern", by_pattern(h)) for i, h in by_layer.items()]):
        torch.testing.assert_close(model.logits(tokens), logits, rtol=0, atol=1e-5)
    assert not torch.equal(model.logits(tokens), logits)  # and leaving restores


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_with_every_edge_to_the_suffix_cut_only_positions_tell(architecture):
    """Cut in all heads and layers, the values of the suffix's tokens no longer reach the last position."""
    model = model_of(architecture)

    def metric(suffix):
        tokens = model.tokenize([PROMPT], [suffix])
        with model.hooks(AttentionKnockout()):
            return model.logits(tokens)[0, -1]

    torch.testing.assert_close(metric(" abcdef"), metric(" uvwxyz"), rtol=0, atol=1e-9)
    one, other = (model.logits(model.tokenize([PROMPT], [s])) for s in (" abcdef", " uvwxyz"))
    assert float((one - other).abs().max()) > 1e-3


def test_generation_under_a_cut_meets_longer_rows():
    model = model_of("llama", torch.float32)
    prompts = [PROMPT, "Hi there, you"]
    tokens = model.tokenize(prompts, [SUFFIX] * 2)
    cut = AttentionKnockout()
    with model.hooks(cut):
        first = model.logits(tokens)[:, -1].argmax(-1).tolist()
        replies = model.generate(tokens, 3)
    assert len(replies) == 2
    alone = model.tokenize([PROMPT], [SUFFIX])
    with model.hooks(cut):
        assert int(model.logits(alone)[0, -1].argmax()) == first[0]  # padded = alone


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2"])
def test_patches_reproduce_the_run_they_come_from(architecture):
    model = model_of(architecture)
    direction, limit = direction_of(model), 1e-5
    plain, suffixed = see(model, condition="plain")[0], see(model, SUFFIX)[0]
    bench = Bench(model, plain.prompts, plain.suffixes, suffixed.suffixes, direction, TOKENS, 0)
    (pair,) = bench.pairs
    layer_0 = tuple((0, head) for head in range(4))
    for into, source in ((pair.dirty, pair.clean), (pair.clean, pair.dirty)):
        # A run's own pattern, z or component put into itself changes nothing.
        base = into.logits()
        for kind in ("pattern", "output", "r̂ component"):
            if kind == "pattern" and into is pair.dirty:
                continue  # tokens that only one run has, the suffix, get no weight from a pattern patch
            own = bench._maker(kind, into, into, [0, 1, 2])(EVERY)
            with model.hooks(own):
                torch.testing.assert_close(into.logits(), base, rtol=0, atol=limit)
                torch.testing.assert_close(model.logits(into.tokens)[:, -1], base, rtol=0, atol=limit)
        # A pass from the first changed layer on, over the last positions, gives what a whole pass gives.
        for layer in range(model.n_layers):
            edit = bench._maker("output", into, source, [layer])(((layer, 1),))
            with model.hooks(edit):
                whole = refusal_log_odds(model.logits(into.tokens)[:, -1], TOKENS.ids)
            torch.testing.assert_close(into.log_odds(TOKENS.ids, edit), whole, rtol=0, atol=limit)
            assert float((whole - into.log_odds(TOKENS.ids)).abs()) > 10 * limit
        # All heads of layer 0 from the other run: attention's output there is the other run's (or only along r̂).
        name, last = "blocks.0.hook_attn_out", slice(-bench.n_post, None)
        here, there = (model.cache(run.tokens, [name], last)[name] for run in (into, source))
        with model.hooks(bench._maker("output", into, source, [0])(layer_0)):
            torch.testing.assert_close(model.cache(into.tokens, [name], last)[name], there, rtol=0, atol=limit)
            torch.testing.assert_close(into.cache([name])[name], there, rtol=0, atol=limit)
        with model.hooks(bench._maker("r̂ component", into, source, [0])(layer_0)):
            moved = into.cache([name])[name]
        r = direction.unit
        torch.testing.assert_close(moved @ r, there @ r, rtol=0, atol=limit)
        rest = (moved - (moved @ r)[..., None] * r) - (here - (here @ r)[..., None] * r)
        assert float(rest.abs().max()) < limit
        # Patterns: the rows are the other run's, on the tokens that both have.
        with model.hooks(bench._maker("pattern", into, source, [0])(layer_0)):
            p = into.cache(["blocks.0.attn.hook_pattern"], whole=True)["blocks.0.attn.hook_pattern"]
            p = p[:, :, last]
        q = model.cache(source.tokens, ["blocks.0.attn.hook_pattern"])["blocks.0.attn.hook_pattern"][:, :, last]
        columns = matching_columns(into.tokens, source.tokens)[0]
        both = columns >= 0
        q = q[..., columns[both]]
        torch.testing.assert_close(p[..., both], q / q.sum(-1, keepdim=True), rtol=0, atol=1e-6)
        assert float(p[..., ~both].abs().sum()) == 0
        assert torch.equal(into.tokens.ids[0, both], source.tokens.ids[0, columns[both]])


def test_restoring_the_direction_sets_it_and_the_placebo_makes_the_same_moves():
    model = model_of("llama")
    r = direction_of(model).unit
    plain, suffixed = see(model, condition="plain")[0], see(model, SUFFIX)[0]
    clean, dirty = model.tokenize([PROMPT]), model.tokenize([PROMPT], [SUFFIX])
    names = [f"blocks.{i}.hook_resid_pre" for i in range(3)]
    last = slice(-clean.n_post, None)
    wanted = torch.stack([model.cache(clean, [n], last)[n] @ r for n in names])
    with model.hooks(Interchange(r, wanted)):
        found = model.cache(dirty, names[1:], last)
    for layer, name in enumerate(names[1:], start=1):
        torch.testing.assert_close(found[name] @ r, wanted[layer], rtol=0, atol=1e-9)
    test = Bench(model, plain.prompts, plain.suffixes, suffixed.suffixes, direction_of(model), TOKENS, 0).restore()
    with model.hooks(Interchange(r, wanted)):
        metric = refusal_metric(model, [PROMPT], TOKENS, [SUFFIX])
    assert float(test.metric[0]) == pytest.approx(float(metric[0]), abs=1e-9)
    change = {names[1]: torch.ones(1, clean.n_post, model.d_model).double()}
    before = model.cache(dirty, names[1:2])[names[1]]
    with model.hooks(NormMatchedPlacebo(change)):
        after = model.cache(dirty, names[1:2])[names[1]]
    torch.testing.assert_close(after[:, last] - before[:, last], change[names[1]])
    assert torch.equal(after[:, : -clean.n_post], before[:, : -clean.n_post])


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("packed", [True, False])
def test_screening_shares_the_prefix_exactly(architecture, packed):
    """With a shared prefix where the model allows it, and whole where it does not: the same numbers.

    Suffixes are packed unless hooks from outside are there, which may count positions.
    """
    model = model_of(architecture, torch.float32)
    prompts, suffixes = [PROMPT, "Hi"], [" a", " longer one", SUFFIX, " very" * 30]
    steps, shapes = [], set()

    def watch(x, hook):
        shapes.add(x.shape)

    with nullcontext() if packed else model.hooks(("blocks.1.hook_resid_pre", watch)):
        found = screen(model, prompts, suffixes, TOKENS, TOP, steps.append)
    assert packed or len(shapes) > 2, "in batches"
    whole = torch.stack([refusal_metric(model, prompts, TOKENS, [s] * 2) for s in suffixes])
    torch.testing.assert_close(found.metric, whole, rtol=0, atol=2e-5)
    shares = torch.stack([see(model, s, tuple(prompts))[0].top_dominance for s in suffixes])
    torch.testing.assert_close(found.strength, shares.double(), rtol=0, atol=2e-5)
    assert steps == [1, 1]
    assert model.backend.supports_prefix == (architecture != "gemma3")
    assert bool(screen(model, prompts, suffixes, TOKENS).strength.isnan().all())


def test_a_screen_that_was_killed_goes_on_where_it_stopped(tmp_path, monkeypatch):
    model = model_of("llama", torch.float32)
    prompts, suffixes = [PROMPT, "Hi", "Tell me"], [" a", SUFFIX]
    done: list[int] = []

    def kill(n):
        done.append(n)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        screen(model, prompts, suffixes, TOKENS, TOP, kill, store=Store(tmp_path))
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "screen").iterdir()}
    assert len(kept) == 2
    found = screen(model, prompts, suffixes, TOKENS, TOP, store=Store(tmp_path))
    assert len(list((tmp_path / "screen").iterdir())) == 3 and all(p.stat().st_mtime_ns == t for p, t in kept.items())
    fresh = screen(model, prompts, suffixes, TOKENS, TOP)
    assert torch.equal(found.metric, fresh.metric) and torch.equal(found.strength, fresh.strength)
    # Other inputs: nothing old is taken.
    other = screen(model, prompts, [" b", SUFFIX], TOKENS, TOP, store=Store(tmp_path))
    assert not torch.equal(other.metric, fresh.metric)


def test_a_token_left_out_is_left_out_as_an_id():
    model = model_of("llama")
    e = model.chat.encode(PROMPT, " abc")
    shorter = without_token(e, 1)
    assert shorter.ids == model.chat.encode(PROMPT, " bc").ids
    assert shorter.spans == model.chat.encode(PROMPT, " bc").spans


def test_causal_tests_on_padded_batches_and_their_record(monkeypatch):
    model = model_of("llama", torch.float32)
    prompts = (PROMPT, "Hi", "Tell me about the sea and the sky")
    plain, suffixed = see(model, "", prompts, condition="plain")[0], see(model, SUFFIX, prompts)[0]
    found = causal_tests(model, plain, suffixed, direction_of(model), TOP, TOKENS, n_random=2)
    one = [see(model, s, (prompts[1],))[0] for s in ("", SUFFIX)]
    alone = causal_tests(model, *one, direction_of(model), TOP, TOKENS, n_random=2)
    for t, u in zip(found.tests, alone.tests, strict=True):
        assert float(t.metric[1]) == pytest.approx(float(u.metric[0]), abs=2e-4), t.name
    for draw in found.random_heads:
        assert [layer for layer, _ in draw] == [layer for layer, _ in sorted(TOP)] and not set(draw) & set(TOP)
    # Keys and values before the post-instruction positions are shared: the same as running each prompt whole.
    monkeypatch.setattr(model.backend, "supports_prefix", False)
    whole = causal_tests(model, plain, suffixed, direction_of(model), TOP, TOKENS, n_random=2)
    for t, u in zip(found.tests, whole.tests, strict=True):
        for name in ("metric", "random", "placebo"):
            torch.testing.assert_close(getattr(t, name), getattr(u, name), rtol=0, atol=2e-4, msg=f"{t.name} {name}")
    frame = found.to_frame()
    assert list(frame["n"]) == [3] * len(frame) and len(frame) == 11
    # What the clean run's own metric would recover is everything; the suffixed run's own nothing.
    assert found._fraction(plain.metric, False).mean == pytest.approx(1)
    assert found._fraction(suffixed.metric, False).mean == 0


@pytest.mark.parametrize("architecture", POST_NORM[:1])
def test_a_component_patch_needs_the_norms_scale(architecture):
    model = model_of(architecture)
    readout = Readout.of(model, direction_of(model).unit)
    hooks = InterchangeWrites(((0, 0),), readout, torch.zeros(3, 4, 1, 2)).hooks(model)
    assert [name.split(".")[-1] for name, _ in hooks] == ["hook_z", "hook_scale", "hook_attn_out"]
    assert len(InterchangeHeads(((0, 0),), torch.zeros(1, 1, 1, 4, 8)).hooks(model)) == 1
    assert len(InterchangePattern(((0, 0),), {0: torch.zeros(1, 4, 2, 5)}, torch.zeros(1, 5).long()).hooks(model)) == 1


# -- bad input ----------------------------------------------------------------------------------------------------


def test_bad_input_is_one_clear_sentence():
    model = model_of("llama", torch.float32)
    direction, prompts = direction_of(model), [PROMPT, "Hi", "Tell me"]
    never = RefusalTokens((0,), ("x",))
    for kwargs, message in (
        ({"suffixes": [" "]}, "suffix 1 .* is empty"),
        ({"suffixes": [" x"], "refusal_tokens": None}, "give harmless prompts"),
        ({"suffixes": [" x"]}, "no refused prompt is left"),
        ({"suffixes": [" x"], "head_prompts": ["Hi"]}, "would choose the heads and be reported on"),
        ({"suffixes": [" x"], "settings": Settings(causal="no")}, "choose working, all or none"),
    ):
        given = {"refusal_tokens": never, **kwargs}
        with pytest.raises(PromptError, match=message):
            investigate(model, prompts, given.pop("suffixes"), direction, **given)
    # A suffix too long for the context, at a model that refuses everything.
    always = RefusalTokens(tuple(range(200)), ("x",) * 200)
    with pytest.raises(PromptError, match="takes"):
        investigate(model, prompts, [" " + "x" * 300], direction, refusal_tokens=always)
    # Among others it costs itself only.
    few = Settings(max_new_tokens=0, causal="none", shuffled=False, forensics=0, shown=0)
    suffixes = [" " + "x" * 300, " now"]
    found = investigate(model, prompts, suffixes, direction, refusal_tokens=always, settings=few)
    assert found.suffix_texts == (" now",) and len(found.results) == 1
    assert any(note.startswith("suffix 'xxx") and "use a shorter suffix" in note for note in found.notes)
