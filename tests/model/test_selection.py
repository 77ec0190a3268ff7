"""Selection: the paper's winner by less work, near misses, refusals of wrong input, on the embedded model."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks.plain import Plain
from refusal_lens import Ablate, Add, PromptSet
from refusal_lens.data.organism import instructions
from refusal_lens.data.prompts import Prompts
from refusal_lens.direction.extract import extract_directions, mean_activations
from refusal_lens.direction.records import SelectionScores
from refusal_lens.direction.select import SelectionRule, choose, select_direction
from refusal_lens.errors import DirectionError, ModelError, PromptError, SelectionError
from refusal_lens.records.direction import Direction
from refusal_lens.refusal.metric import filter_prompts, keep_refused, refusal_metric
from refusal_lens.refusal.phrases import is_refusal
from refusal_lens.refusal.records import RefusalTokens
from refusal_lens.refusal.tokens import calibrate_tokens, find_refusal_tokens, given_refusal_tokens

# Loose enough that candidates pass on any version of the embedded model; the rule itself is tested on numbers.
RULE = SelectionRule(max_kl=5.0, min_induce=-100.0)


@pytest.fixture(scope="module")
def prompts():
    return {name: PromptSet.load(path, sizes=(48, 12, 24)) for name, path in instructions().items()}


@pytest.fixture(scope="module")
def tokens(organism, prompts):
    return find_refusal_tokens(organism, prompts["harmful"].train[:24], prompts["harmless"].train[:24])


@pytest.fixture(scope="module")
def candidates(organism, prompts):
    return extract_directions(organism, prompts["harmful"].train, prompts["harmless"].train)


def _select(organism, prompts, candidates, tokens, **kwargs):
    val = prompts["harmful"].val, prompts["harmless"].val
    return select_direction(organism, candidates, *val, refusal_tokens=tokens, **{"rule": RULE, **kwargs})


def test_lazy_selection_chooses_what_the_full_grid_chooses(organism, prompts, candidates, tokens):
    for rule in (RULE, SelectionRule(max_kl=0.5, min_induce=-100.0), SelectionRule(max_kl=2.0, layer_cutoff=0.7)):
        found = []
        for full in (False, True):
            try:
                found.append(_select(organism, prompts, candidates, tokens, rule=rule, full_grid=full).chosen.label)
            except SelectionError as error:
                found.append(error.near_misses[0])
        assert found[0] == found[1]


@pytest.mark.parametrize("packed", [True, False])
def test_scores_are_those_of_the_plain_algorithm(organism, prompts, candidates, tokens, packed, monkeypatch):
    """Restart, prefix reuse and batching against three whole passes in plain transformers; by length where a model
    can't run packed prompts."""
    from transformers import AutoModelForCausalLM

    from refusal_lens.data.organism import MODEL_DIR

    hf = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32, attn_implementation="eager")
    plain = Plain(hf, organism.tokenize, tokens.ids)
    harmful, harmless = prompts["harmful"], prompts["harmless"]
    gap = plain.mean_diff(harmful.train, harmless.train, len(candidates.positions)) - candidates.mean_diff
    assert float(gap.abs().max()) < 1e-5 * float(candidates.mean_diff.abs().max())
    if not packed:
        monkeypatch.setattr("refusal_lens.direction.scores.packing_holds", lambda *_: False)
    ours = _select(organism, prompts, candidates, tokens, full_grid=True, coeff=1.5)
    grid = plain.select(candidates.mean_diff, harmful.val.texts, harmless.val.texts, 1.5)
    for name, expected in zip(("bypass", "induce", "kl"), grid, strict=True):
        known = ~torch.isnan(expected)
        found = getattr(ours.scores, name)
        assert bool((torch.isnan(found) == ~known).all())
        assert torch.allclose(found[known], expected[known], atol=1e-3, rtol=1e-3), name
    assert choose(SelectionScores(*grid), RULE).chosen == (ours.chosen.pos, ours.chosen.layer)


def test_every_candidate_has_a_reason_or_is_kept(organism, prompts, candidates, tokens):
    selection = _select(organism, prompts, candidates, tokens, rule=SelectionRule(max_kl=5.0))
    for i, pos in enumerate(candidates.positions):
        for layer in range(candidates.n_layers):
            assert bool(selection.reasons[i][layer]) != ((pos, layer) in selection.kept)
    assert "beyond the cut" in selection.reasons[0][-1]
    assert (selection.chosen.pos, selection.chosen.layer) in selection.kept


def test_when_nothing_passes_the_error_says_what_each_needs(organism, prompts, candidates, tokens):
    strict = SelectionRule(max_kl=1e-7)
    with pytest.raises(SelectionError, match=r"Nearest: \(.*needs max_kl .* instead of 1e-07") as caught:
        _select(organism, prompts, candidates, tokens, rule=strict, coeff=3.0)
    miss = caught.value.near_misses[0]
    relaxed = _select(organism, prompts, candidates, tokens, rule=strict, coeff=3.0, relax=True)
    assert (relaxed.chosen.pos, relaxed.chosen.layer) == (miss.pos, miss.layer)
    assert relaxed.chosen.relaxed == "; ".join(miss.needs) != ""
    assert relaxed.score("kl") == pytest.approx(miss.kl)
    # What it says is enough is enough.
    need = next(n for n in miss.needs if n.startswith("max_kl"))
    rule = SelectionRule(max_kl=float(need.split()[1]), min_induce=min(0.0, miss.induce))
    again = _select(organism, prompts, candidates, tokens, rule=rule, coeff=miss.coeff)
    assert (miss.pos, miss.layer) in _select(
        organism, prompts, candidates, tokens, rule=rule, coeff=miss.coeff, full_grid=True
    ).kept
    assert again.chosen.relaxed == ""


def test_streamed_means_do_not_depend_on_batches(organism, prompts):
    texts = prompts["harmful"].train.texts[:20]
    together = mean_activations(organism, texts)
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(organism.n_layers)]
    n_pos = organism.tokenize(["x"]).n_post
    alone = [organism.cache([t], names, positions=slice(-n_pos, None)) for t in texts]
    by_hand = torch.stack([torch.stack([c[n][0].double() for n in names], 1) for c in alone]).mean(0)
    assert together.dtype is torch.float64
    assert torch.allclose(together, by_hand, atol=1e-5)


def test_the_direction_does_its_work_and_a_random_one_does_not(organism, prompts, candidates, tokens):
    chosen = _select(organism, prompts, candidates, tokens, full_grid=False).chosen
    test = prompts["harmful"].test
    metric = {}
    for name, interventions in {
        "baseline": [],
        "ablation": [Ablate(chosen)],
        "random": [Ablate(chosen.random_control(3))],
    }.items():
        with organism.hooks(*interventions):
            metric[name] = float(refusal_metric(organism, test, tokens).mean())
    assert metric["ablation"] < metric["baseline"] - 1.5
    assert abs(metric["random"] - metric["baseline"]) < 0.5


def test_metric_ranks_refused_above_answered(organism, prompts, tokens):
    harmful = refusal_metric(organism, prompts["harmful"].test, tokens)
    harmless = refusal_metric(organism, prompts["harmless"].test, tokens)
    replies = organism.generate(prompts["harmful"].test.texts, 24)
    assert sum(map(is_refusal, replies)) >= 20
    assert float((harmful[:, None] > harmless[None]).double().mean()) > 0.95
    refused, answered = keep_refused(organism, prompts["harmful"].test, prompts["harmless"].test, tokens)
    point = tokens.threshold
    assert len(refused) == int((harmful > point).sum()) and len(answered) == int((harmless < point).sum())


def test_dropped_prompts_are_replaced_until_enough_are_kept(organism, prompts, tokens):
    """A pool of which every other prompt is not refused: spare ones take the place of those, none of them twice."""
    harmful, harmless = prompts["harmful"], prompts["harmless"]
    mixed = tuple(p for pair in zip(harmful.train, harmless.train, strict=True) for p in pair)
    answered = set(harmless.train)
    rows = PromptSet(
        "harmful", Prompts(mixed[:12]), Prompts(mixed[12:20]), harmful.test, (), *[Prompts(mixed[20:])] * 2
    )
    found, other = filter_prompts(organism, rows, harmless, tokens)
    assert len(found.train) == 12 and len(found.val) == 8 and not answered & {*found.train, *found.val}
    assert not set(found.train) & set(found.val) and not {*found.train, *found.val} & set(found.test)
    assert list(found.train)[:6] == [p for p in mixed[:12] if p not in answered] and found.test == rows.test
    kept, seen = (int(word) for word in found.notes[0].split() if word.isdecimal())
    assert kept == 12 and seen > 12 and len(found.spare_train) == len(found.spare_val) == 0
    assert other.notes[0] == f"train: {len(harmless.train)} of {len(harmless.train)} kept, which the model answers"
    # Once the pool is empty, fewer stay; where none does, the error says how far the best one is away.
    rows = dataclasses.replace(rows, spare_train=Prompts(()), spare_val=Prompts(()))
    poor, _ = filter_prompts(organism, rows, harmless, tokens)
    assert len(poor.train) == 6 and len(poor.val) == 4
    with pytest.raises(ModelError, match=r"refuses none of 24 harmful prompts .* must be > "):
        filter_prompts(organism, dataclasses.replace(rows, train=harmless.test), harmless, tokens)


def test_the_filter_and_the_rule_take_the_tokens_own_point(organism, prompts, candidates, tokens):
    metric = refusal_metric(organism, prompts["harmful"].test, tokens)
    point = float(metric.median())
    moved = dataclasses.replace(tokens, calibration=dataclasses.replace(tokens.calibration, threshold=point))
    refused, _ = keep_refused(organism, prompts["harmful"].test, prompts["harmless"].test, moved)
    assert len(refused) == int((metric > point).sum()) < len(metric)
    val = prompts["harmful"], prompts["harmless"]
    found = select_direction(organism, candidates, *val, refusal_tokens=moved, relax=True)
    assert found.thresholds["min_induce"] == point
    paper = find_refusal_tokens(organism, prompts["harmful"].train[:24], prompts["harmless"].train[:24], point="paper")
    assert paper.threshold == 0 and paper.ids == tokens.ids


def test_found_tokens_say_how_well_they_tell_replies_apart(organism, prompts, tokens):
    assert tokens.auroc.mean > 0.95 and 0 < tokens.auroc.n < 48
    assert tokens.coverage["refused"].rate > 0.9 > 0.1 > tokens.coverage["answered"].rate
    assert tokens.calibration.point == "calibrated" and tokens.calibration.above.rate > 0.9
    given = given_refusal_tokens(organism, tokens.ids)
    assert given.calibration is None and given.threshold == 0
    both = calibrate_tokens(organism, given, prompts["harmful"].train[:24], prompts["harmless"].train[:24])
    assert both.threshold == tokens.threshold and both.coverage == tokens.coverage and both.source == "given"


def test_refusal_tokens_by_hand(organism, tokens):
    by_id = given_refusal_tokens(organism, [tokens.ids[0]])
    by_text = given_refusal_tokens(organism, [organism.tokenizer.decode([tokens.ids[0]])])
    assert by_id.ids == by_text.ids == tokens.ids[:1] and by_id.source == "given"
    for wrong, message in (
        (["two words here"], "tokens; name its first"),
        ([10**6], "outside"),
        ([], "no refusal token"),
    ):
        with pytest.raises(PromptError, match=message):
            given_refusal_tokens(organism, wrong)


def test_a_model_that_never_refuses_is_named(organism, prompts):
    with pytest.raises(ModelError, match="refused none of 8 harmful prompts"):
        find_refusal_tokens(organism, prompts["harmless"].test[:8], prompts["harmless"].test[8:16])
    never = RefusalTokens((organism.d_vocab - 1,), ("?",))
    with pytest.raises(ModelError, match="refuses none of 8 harmful prompts by its refusal metric"):
        keep_refused(organism, prompts["harmful"].test[:8], prompts["harmless"].test[:8], never)


def test_candidates_of_another_model_are_refused(organism, prompts, candidates, tokens):
    foreign = dataclasses.replace(candidates, model="0" * 16)
    with pytest.raises(DirectionError, match="fingerprint"):
        _select(organism, prompts, foreign, tokens)


def test_add_takes_coefficient_from_the_direction(organism):
    direction = Direction(torch.eye(organism.d_model)[0], 2.0, -1, 1, coeff=3.0)
    site = "blocks.1.hook_resid_pre"
    before = organism.cache(["hello"], [site])[site]
    with organism.hooks(Add(direction)):
        after = organism.cache(["hello"], [site])[site]
    assert torch.allclose((after - before)[..., 0], torch.full_like(after[..., 0], 6.0), atol=1e-5)
