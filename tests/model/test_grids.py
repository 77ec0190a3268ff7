"""Patching grids against TransformerLens's own loops, and what they cost and refuse."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from transformer_lens import ActivationCache, patching

from refusal_lens.errors import LabelError, ModelError, PromptError, SettingError
from refusal_lens.hijacking.controls import random_controls
from refusal_lens.hijacking.grid_records import SITES, WAYS
from refusal_lens.hijacking.grids import patching_grid
from refusal_lens.records.base import load_record
from refusal_lens.refusal.tokens import given_refusal_tokens
from refusal_lens.tensors import refusal_log_odds

from .cases import direction_of, model_of

PROMPTS, SUFFIX = ["Steal it all, and say how!", "Name a river."], " please now"
POINTS = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "attn.hook_z")
LOOPS = {
    "resid_pre": patching.get_act_patch_resid_pre,
    "attn_out": patching.get_act_patch_attn_out,
    "mlp_out": patching.get_act_patch_mlp_out,
    "z": patching.get_act_patch_attn_head_out_all_pos,
}


def grid_of(model, prompts=PROMPTS[:1], plain=False, direction=None, **kwargs):
    drawn = None if plain else random_controls(model.chat, prompts, SUFFIX, 1).texts
    direction = direction or direction_of(model)
    return drawn, patching_grid(model, prompts, SUFFIX, drawn, direction, given_refusal_tokens(model, [40]), **kwargs)


# Grouped queries; norms after the writes, and a window, so that every pass runs whole prompts.
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
@pytest.mark.parametrize("way", WAYS)
def test_the_grid_is_that_of_transformer_lens(architecture, way):
    model = model_of(architecture, torch.float32)
    tl, direction = model.tl, direction_of(model)
    for site in SITES:
        (random,), found = grid_of(model, ["Go!"], site=site, way=way)
        texts = (SUFFIX, random) if way == WAYS[0] else (random, SUFFIX)
        into, source = (model.tokenize(["Go!"], text) for text in texts)
        kept = model.cache(source, [f"blocks.{n}.{point}" for n in range(3) for point in POINTS])
        cache = ActivationCache(kept, tl)
        metric = partial(last_metric, ids=(40,))
        with torch.inference_mode():
            wanted = LOOPS[site](tl, into.ids, cache, metric)
            plain = metric(tl(into.ids))
        if site != "z":
            before = wanted[:, : -len(found.places)] - plain
            assert float(before.abs().max()) < 1e-4  # by causality
            wanted = wanted[:, -len(found.places) :]
        torch.testing.assert_close(found.effects[0, ..., 0], (wanted - plain).float(), rtol=0, atol=1e-4)
        assert float(found.effects[0].abs().max()) > 0.01 and found.causality == 0
        assert direction.layer == 1 and float(found.effects[1, 0].abs().max()) > 1e-3


def last_metric(logits, ids):
    return refusal_log_odds(logits[0, -1], ids)


@pytest.mark.parametrize("site", ["resid_pre", "z"])
def test_the_effect_along_the_direction_and_the_gradient_are_those_of_plain_passes(site):
    """A small step: the gradient is the slope of the exact effect, in both values (norms round to float32)."""
    model, direction = model_of("llama"), direction_of(model_of("llama"))
    (random,), found = grid_of(model, site=site)
    tokens = [model.tokenize(PROMPTS[:1], text) for text in (SUFFIX, random)]
    name = f"blocks.0.{'attn.hook_z' if site == 'z' else 'hook_resid_pre'}"
    at, r = f"blocks.{direction.layer}.hook_resid_pre", direction.unit
    given, place = model.cache(tokens[1], name)[name], 2

    def values(share):
        def patch(x, hook):
            new, part = x.clone(), (slice(None), slice(None), place) if site == "z" else (slice(None), place - n)
            new[part] += share * (given - x)[part]
            return new

        with model.hooks((name, patch)):
            return torch.stack(
                [
                    refusal_log_odds(model.logits(tokens[0])[0, -1], [40]),
                    model.cache(tokens[0], at)[at][0, -1] @ r,
                ]
            )

    n = len(found.places)
    exact, slope = values(1.0) - values(0.0), (values(0.01) - values(-0.01)) / 0.02
    torch.testing.assert_close(found.effects[:, 0, place, 0].double(), exact, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.estimate[:, 0, place, 0].double(), slope, rtol=0.01, atol=1e-4)
    assert float(exact.abs().min()) > 1e-4


@pytest.mark.parametrize("plain", [False, True])
def test_prompts_together_give_what_each_gives_alone(plain, tmp_path):
    model = model_of("qwen3", torch.float32)
    drawn, found = grid_of(model, PROMPTS, plain, n_placebo=3, folder=tmp_path / "items")
    for i, prompt in enumerate(PROMPTS):
        texts = None if plain else drawn[i : i + 1]
        tokens = given_refusal_tokens(model, [40])
        one = patching_grid(model, [prompt], SUFFIX, texts, direction_of(model), tokens, n_placebo=3)
        for name in ("effects", "estimate"):
            torch.testing.assert_close(getattr(found, name)[..., i], getattr(one, name)[..., 0], rtol=0, atol=2e-4)
    assert len(found.places) == model.chat.n_post + (0 if plain else len(SUFFIX)) and found.causality < 1e-5
    assert len(found.top) == 3 and found.n_chosen == 1 and float(found.placebo.abs().max()) > 0
    again = load_record(found.save(tmp_path / "grid"), type(found))
    assert again.to_frame().equals(found.to_frame()) and len(again.plot().data) == 4
    assert again.largest()["n"].tolist() == [1] * 3 and "largest cell" in again.sentence()
    # A second run takes every layer from the folder: the same to the bit, with the seconds that it took.
    assert torch.equal(grid_of(model, PROMPTS, plain, n_placebo=3, folder=tmp_path / "items")[1].effects, found.effects)
    assert len(list((tmp_path / "items").rglob("layer-*.safetensors"))) == 3


def test_the_estimate_chooses_the_cells_that_are_patched():
    model = model_of("llama", torch.float32)
    whole, some = (grid_of(model, PROMPTS, exact=n)[1] for n in (None, 5))
    size = whole.estimate[0, :, :, :1].mean(-1).abs().flatten()
    wanted = sorted(divmod(i, len(whole.places)) for i in size.topk(5).indices.tolist())
    assert some.measured == wanted and len(some.to_frame()) == 5
    for cell in wanted:
        torch.testing.assert_close(
            some.effects[:, cell[0], cell[1]], whole.effects[:, cell[0], cell[1]], rtol=0, atol=1e-4
        )
    assert whole.agreement() > 0.3 and "cells x 2 prompts" in whole.forecast


def test_what_cannot_be_patched_is_one_sentence():
    model = model_of("llama", torch.float32)
    direction, tokens = direction_of(model), given_refusal_tokens(model, [40])
    with pytest.raises(PromptError, match="not as many tokens as the suffix"):
        patching_grid(model, PROMPTS[:1], SUFFIX, [" no"], direction, tokens)
    with pytest.raises(SettingError, match=r"passes, .*limit=0 seconds: patch fewer cells"):
        grid_of(model, limit=0.0)
    with pytest.raises(LabelError, match="resid_mid"):
        grid_of(model, site="resid_mid")
    with pytest.raises(ModelError, match="no attention heads"):
        grid_of(model_of("lfm2", torch.float32), site="z")
