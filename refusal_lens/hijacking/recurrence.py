"""Do the same heads recur over suffixes, and do suffixes form groups: overlaps and clusters, each beside chance."""

from typing import NamedTuple

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist, squareform

from ..stats import RESAMPLES, Interval

MOST_CLUSTERS, SHUFFLES = 6, 200


class Overlap(NamedTuple):
    """Shared part of two suffixes' top heads, mean over pairs, beside heads drawn at random within layers.

    Attributes:
        found: with its bootstrap interval over suffixes; ``n`` is the number of pairs.
        chance: mean and 95% range where each suffix's heads are permuted within their layers.
    """

    found: Interval
    chance: Interval


class Clusters(NamedTuple):
    """Suffixes by the shape of their profiles.

    Attributes:
        labels: cluster of each suffix, from 1 on.
        order: suffixes by cluster, alike ones beside each other.
        cosine: between each two profiles.
        silhouette: mean over suffixes (Rousseeuw 1987) at the number of clusters that makes it largest.
        chance: the same, number chosen likewise, with every entry of the profiles shuffled over suffixes; 95% range.
        p: share of these shuffles that reach the silhouette.
    """

    labels: np.ndarray
    order: np.ndarray
    cosine: np.ndarray
    silhouette: float
    chance: Interval
    p: float


def top_sets(values: np.ndarray, k: int) -> np.ndarray:
    """The ``k`` heads of largest value of each suffix, as [suffix, layer, head] of booleans."""
    flat = values.reshape(len(values), -1)
    found = np.zeros(flat.shape, dtype=bool)
    np.put_along_axis(found, np.argsort(-flat, axis=1, kind="stable")[:, :k], True, axis=1)
    return found.reshape(values.shape)


def overlap(sets: np.ndarray, others: np.ndarray | None = None, seed: int = 0) -> Overlap:
    """Compare each two of ``sets`` (of one of ``sets`` and one of ``others``, if given); [suffix, layer, head]."""
    rng, none = np.random.default_rng(seed), Interval(float("nan"), float("nan"), float("nan"), 0)
    if len(sets) + (0 if others is None else len(others)) < 2 or (others is not None and not len(others)):
        return Overlap(none, none)
    shared = _shared(sets, others)
    rows = rng.integers(0, shared.shape[0], (RESAMPLES, shared.shape[0]))
    columns = rows if others is None else rng.integers(0, shared.shape[1], (RESAMPLES, shared.shape[1]))
    draws = [shared[np.ix_(a, b)] for a, b in zip(rows, columns, strict=True)]
    # A resample of one suffix alone holds no pair.
    means = [float(np.nanmean(draw)) for draw in draws if np.isfinite(draw).any()]
    pairs = int(np.isfinite(shared).sum()) // (2 if others is None else 1)
    low, high = np.quantile(means, (0.025, 0.975))
    found = Interval(float(np.nanmean(shared)), float(low), float(high), pairs)
    by_chance = []
    for _ in range(SHUFFLES):
        mixed = rng.permuted(sets, axis=-1)
        by_chance.append(np.nanmean(_shared(mixed, None if others is None else rng.permuted(others, axis=-1))))
    return Overlap(found, _range(by_chance))


def _shared(sets: np.ndarray, others: np.ndarray | None) -> np.ndarray:
    """Shared part of each two sets; NaN for a set beside itself."""
    a = sets.reshape(len(sets), -1).astype(float)
    b = a if others is None else others.reshape(len(others), -1).astype(float)
    found = a @ b.T / a[0].sum()
    if others is None:
        np.fill_diagonal(found, np.nan)
    return found


def clusters(profiles: np.ndarray, seed: int = 0) -> Clusters:
    """Cluster suffixes hierarchically (average linkage, cosine distance between profiles [suffix, entry])."""
    rng, (labels, silhouette, distance) = np.random.default_rng(seed), _clustered(profiles)
    by_chance = [_clustered(rng.permuted(profiles, axis=0))[1] for _ in range(SHUFFLES)]
    p = (1 + sum(value >= silhouette for value in by_chance)) / (1 + SHUFFLES)
    order = np.lexsort((distance.mean(1), labels))
    return Clusters(labels, order, 1 - distance, silhouette, _range(by_chance), p)


def _clustered(profiles: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Labels, silhouette and distances, at the best number of clusters."""
    n, distances = len(profiles), np.nan_to_num(pdist(profiles, "cosine"), nan=1.0).clip(0)
    square, tree = squareform(distances), linkage(distances, "average")
    options = [fcluster(tree, k, "maxclust") for k in range(2, min(MOST_CLUSTERS, n - 1) + 1)]
    best = max(options, key=lambda labels: _silhouette(square, labels))
    return best, _silhouette(square, best), square


def _silhouette(distance: np.ndarray, labels: np.ndarray) -> float:
    """Mean silhouette; 0 where there is one cluster only."""
    from sklearn.metrics import silhouette_score  # slow to import, and every report reads records of this slice

    return float(silhouette_score(distance, labels, metric="precomputed")) if len(set(labels)) > 1 else 0.0


def _range(values: list[float]) -> Interval:
    low, high = np.quantile(values, (0.025, 0.975))
    return Interval(float(np.mean(values)), float(low), float(high), len(values))
