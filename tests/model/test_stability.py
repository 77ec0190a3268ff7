"""Stability, subspaces, transfer, system prompts, base against chat."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from refusal_lens import Ablate, HookedChatModel, PromptSet
from refusal_lens.data.organism import instructions
from refusal_lens.direction.extract import extract_directions
from refusal_lens.direction.select import select_direction
from refusal_lens.direction.stability import prompt_activations, selection_stability
from refusal_lens.direction.subspace import pca_subspace, repeated_subspace, subspace_effects
from refusal_lens.direction.trace import trace_direction
from refusal_lens.direction.transfer import Ground, base_chat_trace, effect_matrix, system_prompt_table
from refusal_lens.errors import DirectionError, ModelError, PromptError, RefusalLensError
from refusal_lens.hooks.base import write_sites
from refusal_lens.progress import as_events
from refusal_lens.records.direction import Subspace
from refusal_lens.refusal.metric import refusal_metric
from refusal_lens.refusal.tokens import find_refusal_tokens
from refusal_lens.tensors import orthonormal
from tests.tiny import tiny_bridge, tiny_model, tiny_tokenizer

from .cases import direction_of, model_of

TEXTS = ["Tell me a story", "Hi", "What is it all for?", "Name a river", "Sing", "Count to ten please"]


@pytest.fixture(scope="module")
def found(organism):
    """Prompts, refusal tokens and direction of the embedded model."""
    sets = {name: PromptSet.load(path, name, (48, 16, 12)) for name, path in instructions().items()}
    harmful, harmless = sets["harmful"], sets["harmless"]
    tokens = find_refusal_tokens(organism, harmful.train.texts, harmless.train.texts)
    candidates = extract_directions(organism, harmful.train, harmless.train)
    chosen = select_direction(organism, candidates, harmful.val, harmless.val, refusal_tokens=tokens, relax=True).chosen
    return harmful, harmless, tokens, candidates, chosen


def test_prompt_activations_average_to_the_extracted_means(organism, found):
    harmful, harmless, _, candidates, _ = found
    means = [prompt_activations(organism, p.train).double().mean(0) for p in (harmful, harmless)]
    assert torch.allclose(means[0] - means[1], candidates.mean_diff, atol=1e-5)
    with pytest.raises(PromptError):
        prompt_activations(organism, [])


def test_bootstrapped_selection(organism, found, tmp_path):
    harmful, harmless, tokens, _, chosen = found
    events: list[dict] = []
    progress = as_events(events.append, every=0)
    record = selection_stability(organism, harmful, harmless, tokens, resamples=3, progress=progress)
    steps = [event["done"] for event in events if event["event"] == "progress"]
    assert record.reference.label == chosen.label and steps == [1, 2, 3] and record.resamples == 3
    assert sum(r.rate for r in record.wins.values()) == pytest.approx(1)
    assert torch.allclose(record.cosines.diagonal(), torch.ones(3, dtype=torch.float64))
    # Resamples at the reference's own position and layer point nearly where all prompts point.
    same = [float(c) for c, w in zip(record.to_reference, record.winners, strict=True) if w.label == chosen.label]
    assert all(0.9 < c < 1 for c in same)
    again = selection_stability(organism, harmful, harmless, tokens, resamples=3)
    assert [w.label for w in again.winners] == [w.label for w in record.winners]
    assert type(record).load(record.save(tmp_path / "s")).wins == record.wins and len(record.to_frame()) == len(
        record.wins
    )


def test_ablating_a_subspace_of_one_is_ablating_the_direction():
    model = model_of("llama")
    direction = direction_of(model)
    one = Subspace(direction.unit[None], "pca", direction)
    with model.hooks(Ablate(direction)):
        expected = model.last_logits(TEXTS[:1])
    with model.hooks(Ablate(one)):
        assert torch.allclose(model.last_logits(TEXTS[:1]), expected, atol=1e-12)
    three = Subspace.random(direction, 3, 0)
    with model.hooks(Ablate(three)):
        for x in model.cache(TEXTS[:1], write_sites(3)).values():
            assert float((x @ three.vectors.T).abs().max()) < 1e-12
        nested = model.last_logits(TEXTS[:1])
    with model.hooks(*(Ablate(dataclasses.replace(direction, unit=v)) for v in three.vectors)):
        assert torch.allclose(model.last_logits(TEXTS[:1]), nested, atol=1e-10)


def test_orthonormal_keeps_the_first_and_refuses_dependence():
    torch.manual_seed(0)
    vectors = torch.randn(3, 8)
    q = orthonormal(vectors)
    assert torch.allclose(q @ q.T, torch.eye(3, dtype=torch.float64))
    assert torch.allclose(q[0], vectors[0].double() / vectors[0].double().norm())
    with pytest.raises(DirectionError, match="independent"):
        orthonormal(torch.stack([vectors[0], 2 * vectors[0]]))


def test_subspaces_of_the_embedded_model(organism, found, tmp_path):
    harmful, harmless, tokens, candidates, chosen = found
    direction = chosen if chosen.layer else candidates.direction(-1, 3)
    pca = pca_subspace(organism, harmful.train, harmless.train, direction, 3)
    repeated = repeated_subspace(organism, harmful.train, harmless.train, direction, 3)
    for subspace in (pca, repeated):
        assert torch.allclose(subspace.vectors @ subspace.vectors.T, torch.eye(3, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(repeated.vectors[0].float(), direction.unit, atol=1e-6)
    record = subspace_effects(organism, [pca, repeated], harmful.test, harmless.test, tokens)
    assert record.kinds == ("pca", "repeated", "random") and record.ks == (1, 2, 3)
    assert record.leading_cosine[1] == pytest.approx(1, abs=1e-5) and record.leading_cosine[0] > 0.5
    with organism.hooks(Ablate(direction)):
        alone = refusal_metric(organism, harmful.test, tokens).mean()
    ours, random = (record.found(kind, 1, "bypass").mean for kind in ("repeated", "random"))
    assert ours == pytest.approx(float(alone), abs=1e-3) and ours < random  # a random direction does less
    assert len(record.to_frame()) == 9 and type(record).load(record.save(tmp_path / "r")).summary() == record.summary()
    with pytest.raises(DirectionError, match="at most"):
        pca_subspace(organism, harmful.train[:2], harmless.train, direction, 3)
    with pytest.raises(DirectionError, match="no difference is left"):
        repeated_subspace(organism, harmful.train, harmless.train, _at_layer_zero(candidates, direction), 99)


def _at_layer_zero(candidates, direction):
    """A direction at layer 0, if two prompts differ there at all; else one that leaves nothing after itself."""
    for pos in candidates.positions:
        try:
            return candidates.direction(pos, 0)
        except DirectionError:
            continue
    return dataclasses.replace(direction, layer=0)


def test_cross_effects_with_controls(organism, found):
    harmful, harmless, tokens, _, chosen = found
    grounds = {"harmful": Ground(harmful.test.texts, tokens), "harmless": Ground(harmless.test.texts, tokens)}
    other = chosen.random_control(7)
    record = effect_matrix(organism, {"refusal": chosen, "other": other}, grounds)
    plain = refusal_metric(organism, harmful.test, tokens)
    with organism.hooks(Ablate(chosen)):
        expected = refusal_metric(organism, harmful.test, tokens) - plain
    assert record.change[0][0].mean == pytest.approx(float(expected.mean()))
    assert record.change[0][0].high < record.control[0][0].low  # the direction does more than its placebo
    assert record.cosines[0][0] == pytest.approx(1) and abs(record.cosines[0][1]) < 0.5
    assert len(record.to_frame()) == 4
    added = effect_matrix(organism, {"refusal": chosen}, grounds, "addition")
    assert added.change[0][1].mean > added.control[0][1].mean
    with pytest.raises(RefusalLensError, match="effect 'remove'"):
        effect_matrix(organism, {"refusal": chosen}, grounds, "remove")


def test_system_prompts(organism, found):
    harmful, _, _, _, chosen = found
    systems = ["", "You are a helpful assistant."]
    record = system_prompt_table(organism, chosen, harmful.test.texts[:8], systems, max_new_tokens=12)
    assert [set(r) for r in record.rates] == [{"baseline", "ablation", "random_ablation"}] * 2
    assert record.rates[0]["baseline"].rate > record.rates[0]["ablation"].rate
    mean, sd = record.spread("baseline")
    assert 0 <= mean <= 1 and sd >= 0 and len(record.to_frame()) == 6
    model = tiny_model("llama", seed=5)
    model.tokenizer.chat_template = "{% for m in messages if m.role == 'user' %}<s>{{ m.content }}|{% endfor %}:"
    with pytest.raises(ModelError, match="drops the system prompt"):
        system_prompt_table(model, direction_of(model), ["Hi"], ["Be kind."], max_new_tokens=1)


def test_base_against_chat():
    chat, base = model_of("llama", torch.float32), HookedChatModel(tiny_bridge("llama", 9), tiny_tokenizer(), "base")
    direction, sets = direction_of(chat), {"harmful": TEXTS[:3], "harmless": TEXTS[3:]}
    record = base_chat_trace(chat, base, direction, sets)
    assert record.conditions == ("chat harmful", "chat harmless", "base harmful", "base harmless")
    assert torch.equal(record.cosine[:2], trace_direction(chat, sets, direction).cosine)
    assert not torch.allclose(record.cosine[2:], record.cosine[:2], atol=1e-3)
    itself = base_chat_trace(chat, HookedChatModel(tiny_bridge("llama"), tiny_tokenizer(), "b"), direction, sets)
    assert torch.allclose(itself.cosine[2:], itself.cosine[:2], atol=1e-6)
    with pytest.raises(ModelError, match="n_layers"):
        base_chat_trace(chat, HookedChatModel(tiny_bridge("llama", num_hidden_layers=2), tiny_tokenizer(), "b"), direction, sets)  # fmt: skip  # noqa: E501
