"""Rates and means with their intervals, and tests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import stats as scipy_stats

Values = Sequence[float] | np.ndarray
RESAMPLES = 2000


@dataclass(frozen=True)
class Rate:
    """A share of ``n`` with its 95% Clopper-Pearson interval."""

    rate: float
    low: float
    high: float
    n: int

    @property
    def mean(self) -> float:
        """The share, by the name that an ``Interval`` has for its value."""
        return self.rate

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


def columns(found: Interval | Rate, name: str, prefix: str = "") -> dict[str, float]:
    """Value and interval as columns of a table: ``name``, ``{prefix}low``, ``{prefix}high``."""
    return {name: found.mean, f"{prefix}low": found.low, f"{prefix}high": found.high}


def rate(hits: Sequence[bool]) -> Rate:
    """Share of true values with its exact (Clopper-Pearson) 95% interval; an empty sequence gives NaN and [0, 1].

    Example:
        >>> from refusal_lens.stats import rate
        >>> print(rate([True, True, False, True]))
        75% [19%, 99%] (n = 4)
    """
    n, k = len(hits), int(sum(bool(h) for h in hits))
    if n == 0:
        return Rate(float("nan"), 0.0, 1.0, 0)
    interval = scipy_stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    return Rate(k / n, float(interval.low), float(interval.high), n)


@lru_cache(maxsize=4)  # a table asks for the same draws once per row
def _draws(n: int, seed: int, resamples: int) -> np.ndarray:
    draws = np.random.default_rng(seed).integers(0, n, (resamples, n))
    draws.flags.writeable = False
    return draws


def bootstrap(
    statistic: Callable[..., Any], *samples: np.ndarray, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Percentile bootstrap 95% interval of a statistic; several samples are paired and drawn together.

    Not ``scipy.stats.bootstrap``: with its draws every stored interval would change, and equal draws are reused here.

    Args:
        statistic: arrays [resample, n], one per sample, -> [resample]; NaN resamples are left out.
        samples: arrays of equal length n.
    """
    draws = _draws(len(samples[0]), seed, resamples)
    values = statistic(*(sample[draws] for sample in samples))
    low, high = (np.nanquantile if np.isnan(values).any() else np.quantile)(values, [(1 - 0.95) / 2, (1 + 0.95) / 2])
    return float(low), float(high)


def mean_interval(values: Values, seed: int = 0) -> Interval:
    """Mean of per-prompt values with its percentile bootstrap 95% interval over prompts.

    For a paired comparison pass the per-prompt differences.

    Example:
        >>> from refusal_lens.stats import mean_interval
        >>> print(mean_interval([1.0, 2.0, 3.0, 4.0]))
        2.5 [1.5, 3.5] (n = 4)
    """
    x = np.asarray(values, dtype=float)
    if len(x) == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    if len(x) == 1 or np.ptp(x) == 0:
        return Interval(float(x.mean()), float(x.mean()), float(x.mean()), len(x))
    low, high = bootstrap(lambda x: x.mean(1), x, seed=seed)
    return Interval(float(x.mean()), low, high, len(x))


def fraction_interval(part: Values, whole: Values, seed: int = 0) -> Interval:
    """mean(part) / mean(whole) with its percentile bootstrap 95% interval over prompts (both drawn together).

    NaN where the whole is 0; no interval where more than 5% of the resamples flip the whole's sign.
    """
    x, y = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    if not len(x) or not np.isfinite(x).all() or y.mean() == 0:
        return Interval(float("nan"), float("nan"), float("nan"), len(x))
    value = float(x.mean() / y.mean())
    below = y[_draws(len(y), seed, RESAMPLES)].mean(1)
    if (np.sign(below) != np.sign(y.mean())).mean() > 1 - 0.95:
        return Interval(value, float("nan"), float("nan"), len(x))

    def fraction(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return x.mean(1) / np.where(y.mean(1) == 0, np.nan, y.mean(1))

    low, high = bootstrap(fraction, x, y, seed=seed)
    return Interval(value, low, high, len(x))


def paired_p(differences: Values) -> float:
    """Two-sided Wilcoxon signed-rank test against 0; 1 where nothing differs, which leaves no ranks."""
    x = np.asarray(differences, dtype=float)
    return float(scipy_stats.wilcoxon(x).pvalue) if np.any(x) else 1.0


def benjamini_hochberg(p_values: Values) -> np.ndarray:
    """False-discovery-rate adjusted p-values (Benjamini and Hochberg 1995), in the order given."""
    return scipy_stats.false_discovery_control(np.asarray(p_values, dtype=float), method="bh")


def correlation(x: Sequence[float], y: Sequence[float], of: Callable = scipy_stats.spearmanr) -> tuple[float, float]:
    """Spearman's (or another) correlation and its p-value; NaN below three points or where one side does not vary."""
    if len(x) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return float("nan"), float("nan")
    found = of(x, y)
    return float(found.statistic), float(found.pvalue)


def rank_correlation(x: Sequence[float], y: Sequence[float], seed: int = 0) -> Interval:
    """Spearman's correlation with its percentile bootstrap 95% interval over points; NaN where ``correlation`` is.

    Example:
        >>> from refusal_lens.stats import rank_correlation
        >>> rank_correlation([1, 2, 3, 4, 5, 6], [2, 1, 4, 3, 6, 5]).mean
        0.8285714285714287
    """
    value, _ = correlation(x, y)
    if value != value:
        return Interval(value, value, value, len(x))

    def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        ranks = [scipy_stats.rankdata(side, axis=1) for side in (a, b)]
        a, b = (side - side.mean(1, keepdims=True) for side in ranks)
        size = np.sqrt((a * a).sum(1) * (b * b).sum(1))
        return (a * b).sum(1) / np.where(size == 0, np.nan, size)  # a resample of equal points has none

    low, high = bootstrap(spearman, np.asarray(x, dtype=float), np.asarray(y, dtype=float), seed=seed)
    return Interval(value, low, high, len(x))


def auroc(positive: Values, negative: Values) -> Interval:
    """Area under the ROC curve with its 95% interval (DeLong et al. 1988); ties count half.

    The area is the probability that a positive scores above a negative. NaN where a group is empty.
    """
    p, n = np.asarray(positive, dtype=float), np.asarray(negative, dtype=float)
    if not len(p) or not len(n):
        return Interval(float("nan"), float("nan"), float("nan"), len(p) + len(n))
    wins = (p[:, None] > n[None]) + 0.5 * (p[:, None] == n[None])
    area = float(wins.mean())
    variance = sum(float(rows.var(ddof=1)) / len(rows) for rows in (wins.mean(1), wins.mean(0)) if len(rows) > 1)
    spread = 1.959964 * variance**0.5
    return Interval(area, max(0.0, area - spread), min(1.0, area + spread), len(p) + len(n))


def threshold_at(negative: Values, share: float) -> float:
    """The lowest threshold above which at most a share of the negatives lies.

    Example:
        >>> from refusal_lens.stats import threshold_at
        >>> threshold_at([1.0, 2.0, 3.0, 4.0], 0.25)
        3.0
    """
    values = np.sort(np.asarray(negative, dtype=float))
    return float(values[len(values) - 1 - int(share * len(values))])


def roc(scores: Values, positive: Sequence[bool]) -> list[tuple[float, float, float]]:
    """Points of the ROC curve between every two neighbouring scores, lowest first.

    Returns:
        (threshold, share of positives above it, share of negatives below it); empty where all scores are equal or of
        one kind.

    Example:
        >>> from refusal_lens.stats import roc
        >>> roc([-4.0, -2.0, 1.0], [False, True, True])
        [(-3.0, 1.0, 1.0), (-0.5, 0.5, 1.0)]
    """
    x, flags = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool)
    values = np.unique(x) if flags.any() and not flags.all() else x[:0]
    return [
        (float(t), float((x[flags] > t).mean()), float((x[~flags] < t).mean())) for t in (values[:-1] + values[1:]) / 2
    ]
