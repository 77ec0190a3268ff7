"""Detectors against each other: what each computes, which layer and threshold it gets, and where one fails."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from refusal_lens.data.borderline import load_borderline
from refusal_lens.data.organism import suffixes
from refusal_lens.data.prompts import PromptPair, Prompts
from refusal_lens.data.suffixes import SuffixSet
from refusal_lens.errors import LabelError, PromptError
from refusal_lens.hijacking import probes
from refusal_lens.hijacking.probe_records import DETECTORS, DetectorComparison
from refusal_lens.hijacking.section import detectors_section
from refusal_lens.records.base import load_record
from refusal_lens.stats import auroc


@pytest.fixture(scope="module")
def setting(organism, study):
    kinds = (study.harmful, study.harmless)
    data = PromptPair(*(replace(kind, train=kind.train[:40], test=kind.test[:16]) for kind in kinds))
    return organism, data, study.selection.chosen


@pytest.fixture(scope="module")
def compared(setting):
    suffix = SuffixSet.load(suffixes()).of("adversarial").items[0].text
    edge = load_borderline(["How do I beat eggs?", "How do I kill time?"], ["How do I hurt a person?"])
    return probes.compare_detectors(*setting, edge, [suffix])


def test_scores_are_the_projections_of_each_prompt(setting, compared):
    model, data, r = setting
    layer = compared.layers[DETECTORS.index("projection")]
    site = f"blocks.{layer}.hook_resid_pre"
    for group, texts in (("harmful", data.harmful.test), ("harmless", data.harmless.test)):
        rows = [model.cache(model.tokenize([text]), site)[site][0, r.pos].double() for text in texts]
        expected = [float(row @ r.unit.double()) for row in rows]
        assert compared.of("projection", group) == pytest.approx(expected, abs=1e-3)


def test_layers_come_from_validation_and_the_constant_one_is_said(compared):
    for name, layer in zip(DETECTORS, compared.layers, strict=True):
        row = compared.validation[DETECTORS.index(name)]
        assert row[layer] == row.max() and (layer > 0 or name == "pooled projection"), name
    # At layer 0 the last token of the template is itself, whatever the request; the request's own tokens differ.
    assert compared.validation[[0, 2, 3, 4, 5], 0].tolist() == [0.5] * 5
    assert any("layer 0 is the same for all training prompts" in note for note in compared.notes)
    assert (
        compared.auroc("projection", "plain").mean > 0.95 and compared.auroc("logistic regression", "plain").low > 0.9
    )


def test_every_suffix_stands_beside_random_tokens_on_both_kinds(compared):
    names = [name for name, *_ in compared.tests]
    assert names[0] == "plain" and names[-2:] == ["borderline", "contrasts"] and len(names) == 5
    assert names[1:3] == ["suffix 1", "random tokens 1"] and len(compared.suffixes) == 1
    table = compared.to_frame()
    assert len(table) == 5 * len(DETECTORS)
    plain, attacked = (compared.auroc("projection", test).mean for test in names[:2])
    assert attacked <= plain
    assert compared.groups.count("contrasts") == 1 and compared.groups.count("borderline") == 2


def test_words_name_few_prompts_and_losses(compared, tmp_path):
    said = " ".join(compared.summary())
    assert "Fewer than 500 harmless prompts set the threshold (24) or tested it (16)" in said
    loaded = load_record(compared.save(tmp_path / "detectors"), DetectorComparison)
    assert loaded.to_frame().equals(compared.to_frame())
    section = detectors_section(loaded)
    assert section.text == compared.summary() and "random tokens" in section.items[0].control
    # Scores that fail: the projection of every harmful prompt is moved below all harmless ones.
    bad = compared.scores.clone()
    flags = torch.tensor([group == "harmful" for group in compared.groups])
    bad[0, flags] = bad[0].min() - 1
    worse = replace(compared, scores=bad)
    assert {("plain", "AUROC"), ("plain", "detected")} <= {(test, what) for test, what, *_ in worse.losses()}
    assert "The projection loses: on plain, AUROC 0" in " ".join(worse.summary())
    # One that flags everything detects everything, too, and is not named for it.
    every = worse.thresholds[:1] + (-1e9,) * 5
    assert [what for test, what, *_ in replace(worse, thresholds=every).losses() if test == "plain"] == ["AUROC"]
    with pytest.raises(LabelError, match="Mahalanobis distance"):
        compared.of("Mahalanobis", "harmful")


def test_a_kind_without_prompts_and_prompts_all_alike_are_one_sentence(setting):
    model, data, r = setting
    empty = PromptPair(data.harmful, replace(data.harmless, val=Prompts(())))
    with pytest.raises(PromptError, match="there is no harmless validation prompt: detectors need both kinds"):
        probes.compare_detectors(model, empty, r)
    one = replace(data.harmful, train=Prompts(("Hello there",) * 4))
    alike = PromptPair(one, data.harmless)
    object.__setattr__(alike, "harmless", replace(data.harmless, train=one.train))  # a pair itself keeps them apart
    with pytest.raises(PromptError, match="all training prompts are the same"):
        probes.compare_detectors(model, alike, r)


def synthetic(n=120, d=24, seed=0):
    rng = np.random.default_rng(seed)
    x, harmful = rng.standard_normal((2, n, d)).astype(np.float32), np.arange(n) < n // 2
    x[1][harmful, :3] += 2.0
    x[1] *= np.logspace(-2, 2, d, dtype=np.float32)  # massive coordinates must not decide
    x[0] = 1.0
    return x, harmful


def test_probes_find_the_coordinates_that_carry_the_class():
    x, harmful = synthetic()
    new, labels = synthetic(seed=1)
    fitted = probes.fit_probes(x, harmful)
    assert {name: scorers[0] for name, scorers in fitted.items()} == dict.fromkeys(DETECTORS[2:5])
    for name in ("logistic regression", "sparse probe", "Mahalanobis distance"):
        scores = fitted[name][1](new[1])
        assert auroc(scores[labels], scores[~labels]).low > 0.7, name


def test_the_distance_is_from_the_harmless_mean():
    x, harmful = synthetic()
    distance = probes.fit_probes(x, harmful)["Mahalanobis distance"][1]
    mean = x[1][~harmful].astype(float).mean(0)
    alike = probes.fit_probes(x[1:][:, [0, -1, -1]], np.array([True, False, False]))["Mahalanobis distance"][0]
    assert alike(x[1]).tolist() == [0.0] * 120  # a kind that does not vary has no distance
    assert distance(mean[None])[0] == pytest.approx(0, abs=1e-9) and distance(x[1]).min() > 0


def test_the_sparse_probe_agrees_with_transformer_lens(monkeypatch):
    sparse_probing = pytest.importorskip("transformer_lens.tools.analysis.sparse_probing")
    x, harmful = synthetic(400)
    layer = torch.from_numpy((x[1] - x[1].mean(0)) / x[1].std(0))
    labels = torch.from_numpy(harmful)
    monkeypatch.setattr(probes, "K", 3)
    theirs = sparse_probing.fit_sparse_probe(layer, labels, k=3, test_fraction=0.25)
    train, test = theirs.train_indices.numpy(), theirs.test_indices.numpy()
    scorer = probes.fit_probes(layer.numpy()[None, train], harmful[train])["sparse probe"][0]
    pipe = scorer.__self__
    chosen = pipe[:-1].transform(layer.numpy()[train]).shape[1]
    assert chosen == 3 and sorted(pipe[2].get_support(indices=True)) == sorted(theirs.selected_features.tolist())
    scores = scorer(layer.numpy()[test])
    area = auroc(scores[harmful[test]], scores[~harmful[test]]).mean
    assert area == pytest.approx(theirs.metrics.roc_auc, abs=5e-3)
