"""Replies of prompts that begin alike: what all share is run once, and the replies are those without that."""

from __future__ import annotations

import pytest
import torch

from refusal_lens.hooks.interventions import Ablate, Twins
from refusal_lens.models import prefixes

from .cases import ALL, direction_of, model_of

PROMPTS = ["hi", "how do you do this long thing, then?", "a b c", "What?", "hi there"]


def passes(model, monkeypatch, edits, least):
    """(new tokens, whether the prefix was run once)."""
    runs, real = [], model.backend.prefix_cache
    with monkeypatch.context() as patch:
        patch.setattr(prefixes, "LEAST_SAVED", least)
        patch.setattr(model.backend, "prefix_cache", lambda *args: runs.append(1) or real(*args))
        with model.hooks(*edits):
            # Sampled, since some tiny models repeat one token: other logits would give other replies.
            return model.generate(PROMPTS, 8, batch_size=3, temperature=3.0), len(runs)


@pytest.mark.parametrize("architecture", [*ALL, "mpt", "bloom", "deepseek_v3", "smollm3"])
def test_what_all_prompts_share_is_run_once(architecture, monkeypatch):
    # transformers' MPT gives NaN for padded rows in float64.
    model = model_of(architecture, torch.float32 if architecture == "mpt" else torch.float64)
    edits = [Ablate(direction_of(model))]
    alone, none = passes(model, monkeypatch, edits, 10**9)
    together, once = passes(model, monkeypatch, edits, 1)
    assert (none, once) == (0, int(model.backend.supports_prefix))
    assert together == alone and len(set(alone)) > 1


def test_what_may_count_positions_sees_whole_prompts(monkeypatch):
    model = model_of("qwen3")
    ablate = Ablate(direction_of(model))
    for edit in (Ablate(direction_of(model), positions="template_post"), ("blocks.1.hook_mlp_out", lambda x, hook: x)):
        assert passes(model, monkeypatch, [ablate, edit], 1)[1] == 0
    model.tl.add_hook("blocks.1.hook_mlp_out", lambda x, hook: x)
    try:
        assert passes(model, monkeypatch, [ablate], 1)[1] == 0
    finally:
        model.tl.reset_hooks()
    assert passes(model, monkeypatch, [ablate], 1)[1] == 1 and not model.n_interventions
    together = model.tokenize([PROMPTS[0]] * 4)  # rows that belong to different vectors
    with model.hooks(Twins(ablate, seeds=(1,))):
        assert prefixes.shared_length(model, together) == 0


@pytest.mark.parametrize("architecture", ["qwen3", "bloom", "deepseek_v3", "olmo2"])
def test_logits_after_what_is_shared_are_those_of_whole_rows(architecture, monkeypatch):
    model = model_of(architecture)
    tokens = model.tokenize(PROMPTS)
    monkeypatch.setattr(prefixes, "LEAST_SAVED", 1)
    shared = prefixes.shared_length(model, tokens)
    assert shared > 2
    for edits in ([], [Ablate(direction_of(model))]):
        with model.hooks(*edits):
            whole = model.logits(tokens, 3)
            torch.testing.assert_close(prefixes.last_logits(model, tokens, 3), whole, rtol=0, atol=1e-6)
