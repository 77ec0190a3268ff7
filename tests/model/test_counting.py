"""Forward passes are counted where a model runs, however it is run, and nothing stays on it."""

from __future__ import annotations

import pytest
import torch

from refusal_lens.hooks.readers import Cache, NextLogits
from refusal_lens.models.counting import FORWARDS

PROMPTS = ["hello", "Tell me a story about cats", "How do I bake bread?"]


def counted(work) -> tuple[int, int]:
    before = FORWARDS.copy()
    work()
    return FORWARDS["passes"] - before["passes"], FORWARDS["tokens"] - before["tokens"]


def test_a_pass_is_one_pass_and_its_positions_are_its_tokens(organism):
    tokens = organism.tokenize(PROMPTS)
    rows, width = tokens.ids.shape
    assert counted(lambda: organism.logits(tokens)) == (1, rows * width)
    assert counted(lambda: organism.logits(tokens, start=(2, torch.zeros(rows, width, organism.d_model))))[0] == 1
    # The first reader ends its pass after layer 1, the second needs all of it.
    for reader in (Cache(["blocks.1.hook_resid_post"]), NextLogits()):
        assert counted(lambda reader=reader: organism.run(tokens, read=reader)) == (1, rows * width)
    with organism.hooks(("blocks.0.hook_resid_pre", lambda x, hook: x)):
        assert counted(lambda: organism.logits(tokens)) == (1, rows * width)
    with pytest.raises(RuntimeError), organism.hooks(("blocks.0.hook_resid_pre", lambda x, hook: x @ x)):
        organism.logits(tokens)
    assert counted(lambda: organism.logits(tokens)) == (1, rows * width)


def test_each_new_token_is_a_pass(organism):
    tokens = organism.tokenize(PROMPTS[1:2])
    passes, positions = counted(lambda: organism.generate(tokens, 5))
    assert 1 <= passes <= 5 and positions == tokens.ids.shape[1] + passes - 1


def test_packed_prompts_are_fewer_passes(organism):
    organism.run(PROMPTS, read=NextLogits(), pack=True)  # measures whether packing holds
    padded = counted(lambda: organism.run(PROMPTS * 40, read=NextLogits()))
    packed = counted(lambda: organism.run(PROMPTS * 40, read=NextLogits(), pack=True))
    assert packed[0] <= padded[0] and packed[1] < padded[1]


def test_nothing_stays_on_the_model(organism):
    organism.logits(organism.tokenize(PROMPTS))
    modules = list(organism.tl.original_model.modules())
    assert not any(module._forward_pre_hooks_with_kwargs for module in modules)
    assert not organism.backend.module._forward_pre_hooks
