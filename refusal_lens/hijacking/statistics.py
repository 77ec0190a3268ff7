"""Statistics of paired comparisons and of detectors (numpy and scipy)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats as scipy_stats
from torch import Tensor

from ..records.base import Record
from ..stats import Interval, benjamini_hochberg


def fraction_interval(
    part: Sequence[float] | np.ndarray,
    whole: Sequence[float] | np.ndarray,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> Interval:
    """mean(part) / mean(whole) with its percentile bootstrap interval over prompts (both drawn together).

    NaN where the whole is 0 or has no sign of its own, i.e. some resample turns it over.
    """
    x, y = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    if not len(x) or not np.isfinite(x).all() or y.mean() == 0:
        return Interval(float("nan"), float("nan"), float("nan"), len(x))
    draws = np.random.default_rng(seed).integers(0, len(x), (resamples, len(x)))
    below = y[draws].mean(1)
    if (np.sign(below) != np.sign(y.mean())).mean() > 1 - confidence:
        return Interval(float(x.mean() / y.mean()), float("nan"), float("nan"), len(x))
    ratios = x[draws].mean(1) / np.where(below == 0, np.nan, below)
    low, high = np.nanquantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(x.mean() / y.mean()), float(low), float(high), len(x))


def paired_p(differences: Sequence[float] | np.ndarray) -> float:
    """Two-sided Wilcoxon signed-rank test against 0; 1 where nothing differs."""
    x = np.asarray(differences, dtype=float)
    return float(scipy_stats.wilcoxon(x).pvalue) if len(x) and np.any(x) else 1.0


def departure_site(
    reference: Float[Tensor, "site prompt"], other: Float[Tensor, "site prompt"], alpha: float = 0.05
) -> int | None:
    """First site from which on ``other`` lies below ``reference`` at every later site: paired tests by site,
    Benjamini-Hochberg adjusted over sites."""
    gaps = (reference - other).double().numpy()
    p = benjamini_hochberg([paired_p(gap) for gap in gaps])
    below = (p < alpha) & (gaps.mean(1) > 0)
    found = None
    for site in reversed(range(len(below))):
        if not below[site]:
            break
        found = site
    return found


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Spearman's correlation and its p-value; NaN below three points or where one side does not vary."""
    if len(x) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return float("nan"), float("nan")
    found = scipy_stats.spearmanr(x, y)
    return float(found.statistic), float(found.pvalue)


@dataclass(frozen=True)
class Roc(Record):
    """How well a score tells positives from negatives.

    Attributes:
        fpr, tpr: the curve, from (0, 0) to (1, 1).
        auroc: area under it, with its 95% interval (DeLong).
        n_positive, n_negative: prompts of each kind.
    """

    fpr: tuple[float, ...]
    tpr: tuple[float, ...]
    auroc: Interval
    n_positive: int
    n_negative: int


def roc(positive: Sequence[float], negative: Sequence[float]) -> Roc:
    """ROC curve of a score that should be higher for ``positive``; ties count half."""
    p, n = np.asarray(positive, dtype=float), np.asarray(negative, dtype=float)
    thresholds = np.unique(np.concatenate([p, n]))[::-1]
    tpr = np.concatenate([[0.0], (p[None] >= thresholds[:, None]).mean(1)])
    fpr = np.concatenate([[0.0], (n[None] >= thresholds[:, None]).mean(1)])
    # DeLong: the area is a mean over positives and over negatives of their ranks among the others.
    wins = (p[:, None] > n[None]) + 0.5 * (p[:, None] == n[None])
    area = float(wins.mean())
    variance = sum(float(rows.var(ddof=1)) / len(rows) for rows in (wins.mean(1), wins.mean(0)) if len(rows) > 1)
    spread = 1.959964 * variance**0.5
    interval = Interval(area, max(0.0, area - spread), min(1.0, area + spread), len(p) + len(n))
    return Roc(tuple(fpr.tolist()), tuple(tpr.tolist()), interval, len(p), len(n))
