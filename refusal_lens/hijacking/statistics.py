"""Paired tests between conditions, and ROC curves of detectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats as scipy_stats
from torch import Tensor

from ..records.base import Record
from ..stats import Interval, auroc, benjamini_hochberg


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
    interval = auroc(p, n)
    return Roc(tuple(fpr.tolist()), tuple(tpr.tolist()), interval, len(p), len(n))
