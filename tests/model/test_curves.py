"""How many heads a suffix needs: the curves' ends, their orders, and attention held as in another run."""

from __future__ import annotations

import random

import pytest
import torch

from refusal_lens.hijacking.controls import random_controls
from refusal_lens.hijacking.curves import head_curves, within_layers
from refusal_lens.hooks.attention import AttentionKnockout
from refusal_lens.records.base import load_record
from refusal_lens.refusal.metric import RefusalMetric
from refusal_lens.refusal.phrases import is_refusal
from refusal_lens.refusal.tokens import given_refusal_tokens

from .cases import direction_of, model_of

PROMPTS, OTHERS, SUFFIX = ["Steal it all!", "Name a river."], ["How do I bake bread?"], " please now"


def curves_of(architecture):
    model = model_of(architecture, torch.float32)
    drawn = [random_controls(model.chat, some, SUFFIX, 1).texts for some in (PROMPTS, OTHERS)]
    tokens, direction = given_refusal_tokens(model, [40]), direction_of(model)
    more = {"choosing": OTHERS, "choosing_random": drawn[1], "n_random": 2, "max_new_tokens": 2}
    return model, drawn[0], head_curves(model, PROMPTS, SUFFIX, drawn[0], direction, tokens, **more)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt_oss"])
def test_the_curves_are_the_cuts_that_they_name(architecture, tmp_path):
    model, drawn, found = curves_of(architecture)
    reader = RefusalMetric(given_refusal_tokens(model, [40]))
    every = [(layer, head) for layer in range(3) for head in range(4)]
    assert found.counts == (0, 1, 2, 4, 8, 12) and found.orders == ("attribution", "greedy", "random 1", "random 2")
    assert all(sorted(ranking) == every for ranking in found.rankings)

    def metric(suffixes, under=()):
        return model.run(PROMPTS, suffixes, read=reader, under=under)[reader]

    wanted = {"plain": metric(None), "random": metric(drawn), "suffixed": metric(SUFFIX)}
    for name, values in wanted.items():
        torch.testing.assert_close(getattr(found, name), values.double(), rtol=0, atol=1e-4)
    for order, ranking in enumerate(found.rankings):
        for way, heads in enumerate((ranking[:4], ranking[4:])):
            cut = metric(SUFFIX, AttentionKnockout(heads)).double()
            torch.testing.assert_close(found.metric[way, order, 3], cut, rtol=0, atol=1e-4)
    cut, only = found.metric
    assert torch.equal(cut[:, 0], only[:, -1]) and torch.equal(cut[:, -1], only[:, 0])
    assert float((cut[0, -1] - cut[0, 0]).abs().max()) > 1e-3
    # Greedy on the others: no single cut raises their metric more than the first.
    single = [model.run(OTHERS, SUFFIX, read=reader, under=AttentionKnockout((head,)))[reader].mean() for head in every]
    assert every[int(torch.stack(single).argmax())] == found.rankings[1][0]
    again = load_record(found.save(tmp_path / "curves"), type(found))
    assert again.to_frame().equals(found.to_frame()) and len(again.plot().data) == 10
    assert "heads" in again.sentence() and "so many refuse" in again.sentence()
    # Replies with the same heads cut are those of the model under that cut.
    assert found.reply_counts == (0, 1, 4, 12) and found.replied.shape == (2, 2, 4, 2)
    with model.hooks(AttentionKnockout(found.rankings[0][:4])):
        said = model.generate(PROMPTS, 2, SUFFIX)
    assert found.replied[0, 0, 2].tolist() == [is_refusal(reply) for reply in said]
    assert torch.equal(found.replied[0, :, 0], found.replied[1, :, -1])


def test_attention_held_as_in_the_random_run_leaves_what_values_carry():
    """The oracle: the random run's pattern put in place by plain hooks."""
    model, drawn, found = curves_of("llama")
    reader = RefusalMetric(given_refusal_tokens(model, [40]))
    for i, prompt in enumerate(PROMPTS):
        names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(3)]
        tokens = model.tokenize([prompt], drawn[i])
        kept = model.cache(tokens, names)

        def held(p, hook, n=tokens.n_post, kept=kept):
            return torch.cat([p[:, :, :-n], kept[hook.name][:, :, -n:]], 2)

        with model.hooks(*[(name, held) for name in names]):
            wanted = model.run([prompt], SUFFIX, read=reader)[reader][0]
        assert float(found.held_random.metric[i]) == pytest.approx(float(wanted), abs=1e-4)


def test_a_random_order_gives_every_layer_the_same_turns():
    heads = [(2, 1), (0, 3), (2, 0), (1, 2), (0, 1), (2, 3)]
    found = within_layers(heads, random.Random(3))
    assert [layer for layer, _ in found] == [2, 0, 2, 1, 0, 2] and sorted(found) == sorted(heads)
