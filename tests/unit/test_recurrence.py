"""Overlaps and clusters: against counting by hand, and beside chance where nothing or everything recurs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats

from refusal_lens.hijacking.recurrence import _silhouette, clusters, overlap, top_sets
from refusal_lens.stats import rank_correlation

RNG = np.random.default_rng(0)


def test_an_overlap_is_the_mean_over_pairs():
    values = RNG.normal(size=(5, 3, 4))
    sets = top_sets(values, 4)
    names = [{tuple(x) for x in np.argwhere(one)} for one in sets]
    assert all(len(one) == 4 for one in names)
    assert all(min(v[one]) > max(v[~one]) for v, one in zip(values, sets, strict=True))
    shared = [len(a & b) / 4 for a, b in itertools.combinations(names, 2)]
    assert overlap(sets).found.mean == pytest.approx(np.mean(shared)) and overlap(sets).found.n == 10
    across = [len(a & b) / 4 for a in names[:2] for b in names[2:]]
    assert overlap(sets[:2], sets[2:]).found.mean == pytest.approx(np.mean(across))
    assert np.isnan(overlap(sets[:1]).found.mean)


def test_chance_keeps_layers_and_finds_what_recurs():
    """The same heads every time lie above chance, random ones within it; that a layer recurs is not a finding."""
    same = top_sets(np.repeat(RNG.normal(size=(1, 4, 6)), 8, 0), 5)
    found = overlap(same)
    assert found.found.mean == 1 and found.found.low == 1 and found.chance.high < 0.7
    random = overlap(top_sets(RNG.normal(size=(30, 4, 6)), 5))
    assert random.chance.low <= random.found.mean <= random.chance.high
    assert random.chance.mean == pytest.approx(5 / 24, abs=0.03)
    layered = RNG.normal(size=(30, 4, 6)) + np.array([0, 0, 10, 0])[:, None]  # all in layer 2, there at random
    found = overlap(top_sets(layered, 3))
    assert found.found.mean > 0.4 and found.chance.low <= found.found.mean <= found.chance.high


def test_clusters_find_groups_and_do_not_find_noise():
    centres = RNG.normal(size=(3, 40))
    profiles = np.concatenate([centre + 0.1 * RNG.normal(size=(6, 40)) for centre in centres])
    found = clusters(profiles)
    assert len(set(found.labels)) == 3 and all(len(set(found.labels[i : i + 6])) == 1 for i in (0, 6, 12))
    assert found.silhouette > found.chance.high and found.p < 0.05
    assert sorted(found.order) == list(range(18)) and found.cosine[0, 1] > 0.9 > found.cosine[0, 7]
    assert clusters(RNG.normal(size=(18, 40))).p > 0.05


def test_the_silhouette_is_its_definition():
    """By counting, with a cluster of one, which counts as 0; and where there is one cluster only."""
    points, labels = RNG.normal(size=(12, 3)), np.array([1, 1, 2, 2, 2, 3, 3, 3, 3, 1, 2, 4])
    distance = np.linalg.norm(points[:, None] - points, axis=-1)
    values = []
    for i, own in enumerate(labels):
        mean = {k: np.mean([distance[i, j] for j in range(12) if labels[j] == k and j != i]) for k in (1, 2, 3)}
        mean[4] = distance[i, 11]
        outside = min(value for k, value in mean.items() if k != own)
        values.append((outside - mean[own]) / max(outside, mean[own]) if own != 4 else 0.0)
    assert _silhouette(distance, labels) == pytest.approx(np.mean(values))
    assert _silhouette(distance, np.ones(12)) == 0


def test_a_rank_correlation_has_its_interval():
    x = RNG.normal(size=40)
    y = x + RNG.normal(size=40)
    found = rank_correlation(x.tolist(), y.tolist())
    assert found.mean == pytest.approx(scipy_stats.spearmanr(x, y).statistic) and found.low < found.mean < found.high
    assert found.low > 0 and rank_correlation(x.tolist(), RNG.normal(size=40).tolist()).low < 0
    assert np.isnan(rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]).mean)
