"""How much two judges agree, and where they do not."""

import itertools
from collections.abc import Sequence

from ...errors import ResultError
from ...stats import rate
from ..records import Agreement, Verdict


def cohen_kappa(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Cohen's kappa of two binary raters: (observed - chance) / (1 - chance); NaN when chance agreement is 1.

    Raises:
        ResultError: different lengths, or nothing rated.

    Example:
        >>> rl.behaviour.judges.cohen_kappa([True, True, False, False], [True, False, False, False])
        0.5
    """
    n = len(first)
    if n != len(second) or n == 0:
        raise ResultError(f"kappa needs two ratings of the same replies; found {n} and {len(second)}")
    observed = sum(bool(a) == bool(b) for a, b in zip(first, second, strict=True)) / n
    p, q = sum(map(bool, first)) / n, sum(map(bool, second)) / n
    chance = p * q + (1 - p) * (1 - q)
    return float("nan") if chance == 1 else (observed - chance) / (1 - chance)


def agreement(verdicts: Sequence[Verdict]) -> tuple[Agreement, ...]:
    """Every pair of judges, over the replies that both judged."""
    by_judge: dict[str, dict[tuple[str, str, str, str], Verdict]] = {}
    for v in verdicts:
        by_judge.setdefault(v.judge, {})[v.prompt_set, v.condition, v.prompt, v.response] = v
    found = []
    for first, second in itertools.combinations(by_judge, 2):
        shared = [(a, by_judge[second][key]) for key, a in by_judge[first].items() if key in by_judge[second]]
        pairs = [(a, b) for a, b in shared if a.withheld is not None and b.withheld is not None]
        if pairs:
            kappa = cohen_kappa([bool(a.withheld) for a, _ in pairs], [bool(b.withheld) for _, b in pairs])
            apart = tuple((a, b) for a, b in pairs if a.withheld != b.withheld)
            agreed = rate([a.withheld == b.withheld for a, b in pairs])
            found.append(Agreement(first, second, agreed, kappa, apart, len(shared) - len(pairs)))
    return tuple(found)
