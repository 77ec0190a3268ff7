"""Intervals and tests, from scipy: a rate or a mean never stands alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats as scipy_stats


@dataclass(frozen=True)
class Rate:
    """A share of ``n`` with its 95% Clopper-Pearson interval."""

    rate: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.rate:.0%} [{self.low:.0%}, {self.high:.0%}] (n = {self.n})"


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap 95% interval."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}] (n = {self.n})"


def rate(hits: Sequence[bool], confidence: float = 0.95) -> Rate:
    """Share of true values with its exact (Clopper-Pearson) interval; an empty sequence gives NaN and [0, 1]."""
    n, k = len(hits), int(sum(bool(h) for h in hits))
    if n == 0:
        return Rate(float("nan"), 0.0, 1.0, 0)
    interval = scipy_stats.binomtest(k, n).proportion_ci(confidence, method="exact")
    return Rate(k / n, float(interval.low), float(interval.high), n)


def mean_interval(values: Sequence[float], confidence: float = 0.95, seed: int = 0, resamples: int = 2000) -> Interval:
    """Mean of per-prompt values with its percentile bootstrap interval over prompts.

    For a paired comparison pass the per-prompt differences.
    """
    x = np.asarray(values, dtype=float)
    if len(x) == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    if len(x) == 1 or np.ptp(x) == 0:
        return Interval(float(x.mean()), float(x.mean()), float(x.mean()), len(x))
    draws = np.random.default_rng(seed).integers(0, len(x), (resamples, len(x)))
    low, high = np.quantile(x[draws].mean(1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(x.mean()), float(low), float(high), len(x))


def benjamini_hochberg(p_values: Sequence[float]) -> np.ndarray:
    """False-discovery-rate adjusted p-values (Benjamini and Hochberg 1995), in the order given."""
    return scipy_stats.false_discovery_control(np.asarray(p_values, dtype=float), method="bh")


def auroc(positive: Sequence[float] | np.ndarray, negative: Sequence[float] | np.ndarray) -> float:
    """Area under the ROC curve from the Mann-Whitney U statistic; NaN where a group is empty."""
    if not len(positive) or not len(negative):
        return float("nan")
    return float(scipy_stats.mannwhitneyu(positive, negative).statistic) / (len(positive) * len(negative))
