"""Why attention moves: the sums on many architectures, against plain implementations."""

from __future__ import annotations

import itertools

import pytest
import torch

from refusal_lens.errors import ModelError, PromptError
from refusal_lens.hijacking.controls import random_controls
from refusal_lens.hijacking.rows import shapley
from refusal_lens.hijacking.shift_records import FROM_PLAIN, PLAYERS, TARGETS
from refusal_lens.hijacking.shifts import attention_shift
from refusal_lens.hooks.attention import every_head
from refusal_lens.records.base import load_record
from refusal_lens.records.labels import REGIONS, head_label

from .cases import model_of

PROMPTS, SUFFIX = ("Steal it all, and say how!", "Name a river."), " please now"
# Grouped queries and rotary; biases; norms of queries and keys by head and over heads; soft caps and norms after
# writes; parallel blocks, a part of the entries rotated; sinks; ALiBi; no rotation; norms after it; multipliers.
PLAIN = ("llama", "llama-bias", "qwen3", "gemma2", "gemma3", "olmo2", "gpt_neox", "gpt_oss", "mpt", "gpt2", "granite")
KINDS = (*PLAIN, "hunyuan")
LIMIT = 1e-6  # Hugging Face takes the softmax and norms in float32 whatever the model's dtype


def shift_of(model, prompts=PROMPTS[:1], heads=None, **kwargs):
    heads = [head_label(*head) for head in every_head(model)] if heads is None else heads
    random = random_controls(model.chat, prompts, SUFFIX).texts
    return attention_shift(model, prompts, SUFFIX, random, receivers=heads, **kwargs), random


def by_region(model, prompt, suffix):
    """Attention of every head from the last position by region, read from the model's own pattern."""
    tokens = model.tokenize([prompt], suffix)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.n_layers)]
    rows = torch.stack([x[0, :, -1] for x in model.cache(tokens, names).values()])
    return torch.stack([rows @ tokens.region(name)[0].to(rows) for name in REGIONS])


@pytest.mark.parametrize("architecture", KINDS)
def test_causes_and_senders_add_up_to_what_the_model_does(architecture):
    model = model_of(architecture)
    found, (random,) = shift_of(model)
    after, before, plain = (by_region(model, PROMPTS[0], s) for s in (SUFFIX, random, ""))
    for i, target in enumerate(TARGETS):
        region = REGIONS.index(target)
        torch.testing.assert_close(found.change[i, ..., 0].double(), (after - before)[region], rtol=0, atol=LIMIT)
        edges = found.edges[:, i].sum((0, 2))
        whole = torch.stack([found.change[i][head][0] for head in found.receivers])
        torch.testing.assert_close(edges, whole, rtol=0, atol=LIMIT)
        if found.from_plain is not None:
            wanted = (after - plain)[region]
            torch.testing.assert_close(found.from_plain.sum(0)[i, ..., 0].double(), wanted, rtol=0, atol=LIMIT)
    assert (found.from_plain is None) == (architecture == "hunyuan") == bool(found.notes)
    assert found.causality == 0 and max(found.sums_error, found.scores_error) < LIMIT
    assert float(found.change.abs().max()) > 0.01 and float(found.edges.abs().max()) > 0.01
    gained = (after - before)[REGIONS.index("suffix")].flatten()
    torch.testing.assert_close(found.gained.sum(1)[:, 0].double(), gained, rtol=0, atol=LIMIT)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt_oss"])
def test_a_cause_alone_is_what_a_run_with_only_that_changed_gives(architecture):
    """The oracle: the random run's queries or keys replaced by the suffixed run's, by hooks."""
    model = model_of(architecture)
    found, (random,) = shift_of(model, heads=())
    tokens = [model.tokenize(list(PROMPTS[:1]), s) for s in (random, SUFFIX)]
    suffix, post = (tokens[0].region(name)[0] for name in ("suffix", "template_post"))
    places = (torch.arange(len(post)) == len(post) - 1, suffix, post)
    for layer, (player, where) in itertools.product((0, 2), enumerate(places)):
        site = f"blocks.{layer}.attn.hook_rot_{'q' if player == 0 else 'k'}"
        wanted = model.cache(tokens[1], site)[site]

        def replaced(x, hook, wanted=wanted, where=where):
            return torch.where(where[None, :, None, None], wanted, x)

        name = f"blocks.{layer}.attn.hook_pattern"
        before = model.cache(tokens[0], name)[name][0, :, -1]
        with model.hooks((site, replaced)):
            after = model.cache(tokens[0], name)[name][0, :, -1]
        for i, target in enumerate(TARGETS):
            change = (after - before) @ tokens[0].region(target)[0].to(after)
            torch.testing.assert_close(found.alone[player, i, layer, :, 0].double(), change, rtol=0, atol=LIMIT)


def test_shapley_values_are_the_mean_over_all_orders():
    values = list(torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    found = shapley(values, 3)
    orders = list(itertools.permutations(range(3)))
    wanted = torch.zeros(3, 5, dtype=torch.float64)
    for order in orders:
        coalition = 0
        for player in order:
            joined = coalition | (4 >> player)
            wanted[player] += (values[joined] - values[coalition]) / len(orders)
            coalition = joined
    torch.testing.assert_close(found, wanted)


def test_a_sender_without_a_change_sends_nothing_and_earlier_layers_only():
    """At the last position the embedding is the same in both runs, and no head writes before its own layer."""
    found, _ = shift_of(model_of("llama"))
    senders = found.senders
    assert float(found.edges[0, :, :, senders.index("embedding")].abs().max()) == 0
    for r, (layer, _) in enumerate(found.receivers):
        later = [i for i, name in enumerate(senders[:-2]) if name != "embedding" and int(name[1]) >= layer]
        assert float(found.edges[:, :, r, later].abs().max()) == 0
    assert senders[-2:] == ("biases", "norms") and found.sizes["sender"] == len(senders)


def test_prompts_together_give_what_each_gives_alone_and_the_record_is_kept(tmp_path):
    model = model_of("qwen3", torch.float32)
    chosen = {"choosing": PROMPTS[1:], "choosing_random": random_controls(model.chat, PROMPTS[1:], SUFFIX).texts}
    found, random = shift_of(model, PROMPTS, 3, **chosen)
    assert found.n_chosen == 1 and len(found.receivers) == 3
    for i, prompt in enumerate(PROMPTS):
        one = attention_shift(model, [prompt], SUFFIX, random[i : i + 1], receivers=found.receivers)
        for name in ("parts", "alone", "from_plain", "gained", "taken"):
            torch.testing.assert_close(getattr(found, name)[..., i], getattr(one, name)[..., 0], rtol=0, atol=2e-5)
    assert found.to_frame()[[*PLAYERS]].sum(1).tolist() == pytest.approx(found.to_frame()["change"].tolist(), abs=1e-6)
    paths = found.compositions()
    assert len(paths) == 12 and paths["path"].str.contains(r"^.+ -> (?:query|keys) of L\dH\d$").all()
    assert "changes by" in found.sentence() and len(found.plot().data) == 5
    again = load_record(found.save(tmp_path / "shift"), type(found))
    assert torch.equal(again.edges, found.edges) and again.competitors().equals(found.competitors())
    assert again.from_plain is not None and len(again.from_plain) == len(FROM_PLAIN)


def test_the_order_in_which_receivers_are_named_changes_nothing():
    model = model_of("llama")
    heads = [head_label(*head) for head in every_head(model)]
    found, turned = (shift_of(model, heads=some)[0] for some in (heads, heads[::-1]))
    assert turned.receivers == found.receivers and turned.sums_error < LIMIT
    assert torch.equal(turned.gained, found.gained) and torch.equal(turned.edges, found.edges)


def test_a_window_that_hides_the_instruction_is_named():
    assert shift_of(model_of("mistral"), heads=())[0].hidden == (0, 1, 2)
    assert shift_of(model_of("llama"), heads=())[0].hidden == ()


def test_what_cannot_be_split_is_one_sentence():
    model = model_of("opt")
    with pytest.raises(ModelError, match="scores in a way not known here"):
        shift_of(model, heads=())
    found, _ = shift_of(model_of("deepseek_v2"), heads=["L1H0"])
    assert found.senders == () and "was not split: layer 1: W_Q is not available by head" in found.notes[-1]
    assert float(found.change.abs().max()) > 0.01
    with pytest.raises(PromptError, match="not as many as the suffix has"):
        attention_shift(model_of("llama"), PROMPTS[:1], SUFFIX, [" no"], receivers=())
    with pytest.raises(PromptError, match="other prompts that choose"):
        attention_shift(model_of("llama"), PROMPTS[:1], SUFFIX, [SUFFIX], receivers=2)
