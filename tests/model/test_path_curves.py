"""Many paths at once: against single paths, against a run that has every sender, and against plain hooks."""

from __future__ import annotations

from random import Random

import pytest
import torch

from refusal_lens.hijacking.controls import random_controls
from refusal_lens.hijacking.paths import AT_RANDOM, _parsed, _stand_ins, path_curves, path_effects
from refusal_lens.hijacking.shifts import attention_shift
from refusal_lens.records.base import load_record
from refusal_lens.refusal.tokens import given_refusal_tokens
from refusal_lens.tensors import refusal_log_odds

from .cases import direction_of, model_of

PROMPTS, SUFFIX = ["Steal it all!", "Name a river."], " please now"
LAYERS = ["embedding -> query of L1H0", "L0H2 -> keys and values of L1H0", "L0 MLP -> keys of L1H3"]
LAYERS += [
    "L1H0 -> query of L2H1",
    "L0H2 -> query of L2H1",
    "L1 MLP -> keys and values of L2H1",
    "L1H0 -> values of L2H2",
]


def curves_of(model, paths, prompts=PROMPTS[:1], **kwargs):
    drawn = random_controls(model.chat, prompts, SUFFIX, 1).texts
    tokens = given_refusal_tokens(model, [40])
    return drawn, path_curves(model, prompts, SUFFIX, drawn, tokens, paths, **kwargs)


def runs_of(model, random):
    return (model.tokenize(PROMPTS[:1], text) for text in (SUFFIX, random))


def metric_of(model, tokens):
    return refusal_log_odds(model.logits(tokens)[:, -1], [40]).double()


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_one_path_is_that_path_and_none_the_run_itself(architecture):
    model, prompts = model_of(architecture), PROMPTS
    tokens, direction = given_refusal_tokens(model, [40]), direction_of(model)
    for path in ("L0 MLP -> keys and values of L1H2", "L0H1 -> query of L2H3"):
        drawn, found = curves_of(model, [path], prompts, n_random=2)
        for i, way in enumerate(("into suffixed", "into clean")):
            one = path_effects(model, prompts, SUFFIX, drawn, direction, tokens, [path], way=way)
            change = found.metric[i, 0, 1] - found.metric[i, 0, 0]
            torch.testing.assert_close(change.float(), one.effects[1, 0], rtol=0, atol=1e-6)
            assert float(change.abs().max()) > 1e-5
    for ends, suffixes in ((found.suffixed, SUFFIX), (found.random, drawn)):
        wanted = metric_of(model, model.tokenize(prompts, suffixes))
        torch.testing.assert_close(ends, wanted, rtol=0, atol=1e-6)
    assert found.counts == (0, 1) and torch.equal(found.metric[:, 0, 0], found.metric[:, 1, 0])


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_with_every_sender_the_query_is_that_of_the_other_run(architecture):
    """The random run's query put into the suffixed run by a plain hook."""
    model = model_of(architecture)
    senders = ["embedding", *(f"L{layer}{part}" for layer in (0, 1) for part in ("H0", "H1", "H2", "H3", " MLP"))]
    (random,), found = curves_of(model, [f"{sender} -> query of L2H1" for sender in senders], n_random=1)
    into, source = runs_of(model, random)
    site = "blocks.2.attn.hook_q"
    query = model.cache(source, site)[site]

    def put(q, hook):
        return torch.stack([query[:, :, h] if h == 1 else q[:, :, h] for h in range(4)], 2)

    with model.hooks((site, put)):
        wanted = metric_of(model, into)
    torch.testing.assert_close(found.metric[0, 0, -1], wanted, rtol=0, atol=3e-6)
    assert float((wanted - found.suffixed).abs()) > 3e-5
    assert float((found.metric[0, 0, -2] - wanted).abs()) > 1e-5  # without the last sender it is another


@torch.inference_mode()
def brute_force(model, into, source, paths, stale=False):
    """Layer by layer in whole runs; without grouped queries a head's own query, keys and values can be put in place."""
    names = [
        f"blocks.{layer}.{name}" for layer in range(3) for name in ("hook_resid_pre", "hook_mlp_out", "attn.hook_z")
    ]
    base, other, hooks = model.cache(into, names), model.cache(source, names), []

    def write(run, path):
        if path.layer < 0:
            return run["blocks.0.hook_resid_pre"]
        if path.head is None:
            return run[f"blocks.{path.layer}.hook_mlp_out"]
        z = run[f"blocks.{path.layer}.attn.hook_z"].reshape(1, len(into.ids[0]), 4, -1)
        return z[:, :, path.head] @ model.tl.W_O[path.layer, path.head]

    for layer in (1, 2):
        with model.hooks(*hooks):
            now = model.cache(into, names)
        new = []
        some = [path for path in paths if path.receiver[0] == layer]
        for head in {path.receiver[1] for path in some}:
            for part, sides in {
                "q": ["query"],
                "k": ["keys", "keys and values"],
                "v": ["values", "keys and values"],
            }.items():
                mine = [path for path in some if path.receiver[1] == head and path.side in sides]
                step = sum(write(other, path) - write(base if stale else now, path) for path in mine)
                at, site = f"blocks.{layer}.hook_resid_pre", f"blocks.{layer}.attn.hook_{part}"
                with model.hooks(*hooks, (at, lambda x, hook, step=step: x + step)):
                    received = model.cache(into, site)[site][:, :, head]

                def put(x, hook, head=head, received=received):
                    return torch.cat([x[:, :, :head], received[:, :, None], x[:, :, head + 1 :]], 2)

                new.append((site, put))
        hooks += new
    with model.hooks(*hooks):
        return metric_of(model, into)


def test_receivers_in_two_layers_are_those_of_plain_hooks():
    model = model_of("gpt2")
    (random,), found = curves_of(model, LAYERS, n_random=2)
    paths = [_parsed(model, text) for text in LAYERS]
    suffixed, drawn = runs_of(model, random)
    assert found.counts == (0, 1, 2, 4, 7)
    for i, (into, source) in enumerate(((suffixed, drawn), (drawn, suffixed))):
        for j, n in enumerate(found.counts):
            wanted = brute_force(model, into, source, paths[:n])
            torch.testing.assert_close(found.metric[i, 0, j], wanted, rtol=0, atol=2e-6)
        # What earlier receivers changed in a later sender's write is not counted twice.
        assert float((wanted - brute_force(model, into, source, paths, stale=True)).abs()) > 2e-5


def test_stand_ins_are_other_heads_each_once_for_a_receiver():
    model = model_of("llama", torch.float32)
    texts = ["L0H1 -> query of L2H0", "L0 MLP -> keys of L2H0", "L0H2 -> query of L2H0", "L0H3 -> query of L2H0"]
    rows = _stand_ins(model, [_parsed(model, text) for text in texts], 3, Random(0))
    assert [row[0] for row in rows] == [1, None, 2, 3] and rows[1][1:] == [AT_RANDOM] * 3
    # Three of four heads send already: one stands in, then nothing is left.
    assert [row[1:] for row in rows[::2]] == [[0] * 3, [AT_RANDOM] * 3] and rows[3][1:] == [AT_RANDOM] * 3


def test_the_compositions_of_a_shift_with_their_table_and_figure(tmp_path):
    model = model_of("qwen3", torch.float32)
    drawn = random_controls(model.chat, PROMPTS, SUFFIX, 1).texts
    shift = attention_shift(model, PROMPTS, SUFFIX, drawn, receivers=["L2H1", "L1H2"], plain=False)
    _, found = curves_of(model, shift, PROMPTS, top=6, n_random=2)
    named = [p for p in shift.compositions()["path"].tolist()[:6] if not p.startswith(("norms", "biases"))]
    assert list(found.paths) == [p.replace("-> keys", "-> keys and values") for p in named] and found.notes
    assert found.orders == ("attribution", "random 1", "random 2")
    for way, start in (("cut", found.suffixed), ("only", found.random)):
        grid = found.metric[("cut", "only").index(way)]
        for i, prompt in enumerate(PROMPTS):
            _, one = curves_of_one(model, prompt, drawn[i], found.paths)
            torch.testing.assert_close(
                grid[0, :, i], one.metric[("cut", "only").index(way), 0, :, 0], rtol=0, atol=1e-4
            )
        share = (grid[0, -1] - start).mean() / (found.random - found.suffixed).mean()
        sign = 1 if way == "cut" else -1
        assert found.share(way, "attribution", len(named)).mean == pytest.approx(sign * float(share))
    area = (found.metric[0, 0, 1:].mean(0) - found.suffixed).mean() / (found.random - found.suffixed).mean()
    assert found.area("cut", "attribution").mean == pytest.approx(float(area))
    again = load_record(found.save(tmp_path / "curves"), type(found))
    frame = again.to_frame()
    assert frame.equals(found.to_frame()) and len(frame) == 4 * len(found.counts)
    assert frame["last"].tolist()[1] == found.paths[0] and len(again.plot().data) == 8
    assert "random senders" in again.sentence()


def curves_of_one(model, prompt, drawn, paths):
    return drawn, path_curves(model, [prompt], SUFFIX, [drawn], given_refusal_tokens(model, [40]), paths, n_random=0)
