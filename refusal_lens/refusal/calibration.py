"""Which tokens and which point of the refusal metric best separate refused from answered replies: numbers alone."""

import math
from collections.abc import Sequence

import numpy as np

from ..errors import SettingError
from ..records.labels import POINTS
from ..stats import Interval, auroc, rate, roc
from ..tensors import METRIC_EPS
from .records import Calibration

HALF = 2  # replies of each kind that a half needs


def halves(refused: Sequence[bool] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two masks that share out refused and answered replies in turn; both take all where a half would have too few."""
    flags = np.asarray(refused, dtype=bool)
    if min(flags.sum(), (~flags).sum()) < 2 * HALF:
        return np.ones_like(flags), np.ones_like(flags)
    turn = np.where(flags, np.cumsum(flags), np.cumsum(~flags)) % 2 == 1
    return turn, ~turn


def metric_of(probabilities: np.ndarray) -> np.ndarray:
    """log p - log(1 - p) of the summed probability of each row's tokens, as ``tensors.refusal_log_odds``."""
    p = probabilities.sum(1)
    return np.log(p + METRIC_EPS) - np.log(1 - p + METRIC_EPS)


def choose_tokens(probabilities: np.ndarray, refused: Sequence[bool]) -> tuple[list[int], Interval]:
    """Choose the candidates whose summed probability best separates refused from answered replies.

    On one half of the replies, candidates are added greedily, each time the one that raises the area under the ROC
    curve most; of these sets the one with the largest area on the other half is taken, the larger set at a tie.

    Args:
        probabilities: of each reply (row), of each candidate (column) as its first token; best candidates first.
        refused: verdict on each reply.

    Returns:
        Indices of the candidates, and the area on the other half with its 95% interval (NaN where all replies are of
        one kind; of the same replies where there are fewer than four of a kind).

    Example:
        >>> import numpy as np
        >>> from refusal_lens.refusal.calibration import choose_tokens
        >>> p = np.array([[0.9, 0.1], [0.2, 0.1], [0.1, 0.8], [0.1, 0.1]])
        >>> choose_tokens(p, [True, True, False, False])[0]  # the second one would put a refused below an answered one
        [0]
    """
    flags, (learn, held) = np.asarray(refused, dtype=bool), halves(refused)
    if flags.all() or not flags.any():
        return list(range(probabilities.shape[1])), Interval(math.nan, math.nan, math.nan, len(flags))

    def area(columns: list[int], mask: np.ndarray) -> Interval:
        metric = metric_of(probabilities[:, columns])
        return auroc(metric[mask & flags], metric[mask & ~flags])

    path: list[int] = []
    while left := [k for k in range(probabilities.shape[1]) if k not in path]:
        path.append(max(left, key=lambda k: area([*path, k], learn).mean))
    areas = [area(path[:size], held) for size in range(1, len(path) + 1)]
    size = max(range(len(areas)), key=lambda i: (areas[i].mean, i))
    return path[: size + 1], areas[size]


def calibrate_metric(metric: Sequence[float], refused: Sequence[bool], point: str = "calibrated") -> Calibration:
    """Choose the point of the metric above which a prompt counts as refused.

    Args:
        point: "calibrated" (Youden's: highest sum of the two shares on the right side), "accuracy" (most
            prompts on the right side), "equal_error" (equal error rates) or "paper" (0). At a tie the one nearest
            to 0; 0 where all replies are of one kind.

    Raises:
        SettingError: an unknown point.

    Example:
        >>> from refusal_lens.refusal.calibration import calibrate_metric
        >>> calibrate_metric([-1.0, -2.0, -7.0, -9.0], [True, True, False, False]).threshold
        -4.5
    """
    if point not in POINTS:
        raise SettingError(f"there is no point {point!r} of the refusal metric; choose from {', '.join(POINTS)}")
    x, flags = np.asarray(metric, dtype=float), np.asarray(refused, dtype=bool)
    above, below = [], []
    first, second = halves(flags)
    # Each half is judged by the point that the other one gives, so that the error is not that of its own replies.
    for fit, held in ((first, second), (second, first)) if (first != second).any() else ((first, first),):
        threshold = _threshold(x[fit], flags[fit], point)
        above += (x[held & flags] > threshold).tolist()
        below += (x[held & ~flags] < threshold).tolist()
    return Calibration(
        point, _threshold(x, flags, point), rate(above), rate(below), tuple(x.tolist()), tuple(flags.tolist())
    )


def _threshold(x: np.ndarray, flags: np.ndarray, point: str) -> float:
    if point == "paper" or flags.all() or not flags.any():
        return 0.0
    n, m = int(flags.sum()), int((~flags).sum())
    value = {
        "calibrated": lambda above, below: above + below,
        "accuracy": lambda above, below: above * n + below * m,
        "equal_error": lambda above, below: -abs(above - below),
    }[point]
    points = [(round(value(above, below), 9), -abs(t), t) for t, above, below in roc(x, flags.tolist())]
    return max(points)[2] if points else 0.0
