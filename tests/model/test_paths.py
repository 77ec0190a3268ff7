"""Direct paths against TransformerLens's direct path patching, and against plain hooks."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from transformer_lens import ActivationCache, patching

from refusal_lens.errors import LabelError, PromptError
from refusal_lens.hijacking.controls import random_controls
from refusal_lens.hijacking.grid_records import EFFECTS
from refusal_lens.hijacking.paths import path_effects
from refusal_lens.hijacking.shifts import attention_shift
from refusal_lens.records.base import load_record
from refusal_lens.refusal.tokens import given_refusal_tokens
from refusal_lens.tensors import refusal_log_odds

from .cases import direction_of, model_of

PROMPTS, SUFFIX = ["Steal it all!", "Name a river."], " please now"


def effects_of(model, paths, prompts=PROMPTS[:1], **kwargs):
    drawn = random_controls(model.chat, prompts, SUFFIX, 1).texts
    tokens, direction = given_refusal_tokens(model, [40]), direction_of(model)
    return drawn, path_effects(model, prompts, SUFFIX, drawn, direction, tokens, paths, **kwargs)


def last_metric(logits):
    return refusal_log_odds(logits[0, -1], [40])


# Of grouped queries TransformerLens's tool takes queries only.
@pytest.mark.parametrize(("architecture", "side"), [("llama", "query"), ("gpt2", "keys"), ("gpt2", "values")])
def test_a_path_is_that_of_transformer_lens(architecture, side):
    model = model_of(architecture)
    (random,), found = effects_of(model, [f"L0H2 -> {side} of L{n}H1" for n in (1, 2)], way="into suffixed")
    into, source = (model.tokenize(PROMPTS[:1], text) for text in (SUFFIX, random))
    caches = [ActivationCache(model.cache(x, "blocks.0.attn.hook_z"), model.tl) for x in (source, into)]
    with torch.inference_mode():
        loop = partial(patching.get_act_patch_direct_path, model.tl, into.ids, *caches, last_metric)
        wanted = loop(src_layer=0, src_head=2, component=side[0], verbose=False)[1:, 1]
        wanted = wanted - last_metric(model.tl(into.ids))
    torch.testing.assert_close(found.effects[1, :, 0], wanted.float(), rtol=0, atol=3e-6)
    assert float(found.effects[1].abs().max()) > 5e-5


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_only_the_receiver_changes(architecture):
    """Plain hooks: a sender's write added where the receiver's keys are made, the layer's other heads as before."""
    model = model_of(architecture)
    paths = ["L0 MLP -> keys of L1H2", "embedding -> values of L1H2", "L0 MLP -> keys and values of L1H2"]
    (random,), found = effects_of(model, paths)
    into, source = (model.tokenize(PROMPTS[:1], text) for text in (random, SUFFIX))
    names = ["blocks.0.hook_mlp_out", "blocks.0.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.1.attn.hook_pattern"]
    one, other = (model.cache(tokens, names) for tokens in (into, source))
    at, suffix = "blocks.1.hook_resid_pre", into.region("suffix")[0].double()
    for i, (name, parts) in enumerate(((names[0], "k"), (names[1], "v"), (names[0], "kv"))):
        sites = [f"blocks.1.attn.hook_{part}" for part in parts]
        with model.hooks((at, lambda x, hook, name=name: x + (other[name] - one[name]))):
            received = model.cache(into, sites)

        def alone(z, hook):
            new = one[names[2]].clone().reshape(*z.shape[:2], model.n_heads, -1)
            new[:, :, 2] = z.reshape(*z.shape[:2], model.n_heads, -1)[:, :, 2]
            return new.reshape(z.shape)

        puts = [(site, lambda x, hook, new=received[site]: new) for site in sites]
        with model.hooks(*puts, (names[2], alone)):
            metric = refusal_log_odds(model.logits(into)[:, -1], [40])
            pattern = model.cache(into, names[3])[names[3]][0, 2, -1]
        before = refusal_log_odds(model.logits(into)[:, -1], [40])
        changes = ((pattern - one[names[3]][0, 2, -1]) @ suffix)[None], metric - before
        for effect, change in zip(EFFECTS, changes, strict=False):
            got = found.effects[EFFECTS.index(effect), i].double()
            torch.testing.assert_close(got, change.double(), rtol=0, atol=2e-5)
    assert float(found.effects[0, 0].abs().max()) > 1e-4 and float(found.effects[0, 1].abs().max()) == 0
    assert found.effects[2].isnan().all()  # the receiver's layer is the direction's


def test_the_compositions_of_a_shift_are_measured_with_random_senders(tmp_path):
    model = model_of("qwen3", torch.float32)
    drawn = random_controls(model.chat, PROMPTS, SUFFIX, 1).texts
    shift = attention_shift(model, PROMPTS, SUFFIX, drawn, receivers=["L2H1"], plain=False)
    _, found = effects_of(model, shift, PROMPTS, top=5, n_random=2)
    named = [p for p in shift.compositions()["path"].tolist()[:5] if not p.startswith(("norms", "biases"))]
    keys = [p for p in named if "-> keys of" in p]
    also = [p.replace("keys", side) for p in keys for side in ("values", "keys and values")]
    assert keys and sorted(found.paths) == sorted({*named, *also})
    assert len(found.notes) == 5 - len(named) and found.sizes["draw"] == 2
    for i, prompt in enumerate(PROMPTS):
        tokens, direction = given_refusal_tokens(model, [40]), direction_of(model)
        one = path_effects(model, [prompt], SUFFIX, drawn[i : i + 1], direction, tokens, found.paths)
        torch.testing.assert_close(found.effects[:2, :, i], one.effects[:2, :, 0], rtol=0, atol=1e-4)
    torch.testing.assert_close(found.whole[0, 0], shift.change[1, 2, 1].float(), rtol=0, atol=1e-4)
    again = load_record(found.save(tmp_path / "paths"), type(found))
    assert again.to_frame().equals(found.to_frame()) and "random senders" in again.sentence()
    assert len(again.plot().data) == 6


def test_what_is_no_path_is_one_sentence():
    model = model_of("llama", torch.float32)
    with pytest.raises(LabelError, match="is no path: write it as"):
        effects_of(model, ["L0H1 to L1H2"])
    with pytest.raises(LabelError, match="an earlier layer than its receiver"):
        effects_of(model, ["L1H1 -> query of L1H2"])
    with pytest.raises(LabelError, match="3 layers of 4 heads"):
        effects_of(model, ["L0H9 -> query of L1H2"])
    with pytest.raises(PromptError, match="not as many tokens"):
        tokens, direction = given_refusal_tokens(model, [40]), direction_of(model)
        path_effects(model, PROMPTS[:1], SUFFIX, [" no"], direction, tokens, ["L0H1 -> query of L1H2"])
