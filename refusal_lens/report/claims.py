"""Words of claims by effect size and number of prompts: the one place of their thresholds (docs/method.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..stats import Interval

FEW = 32  # prompts of a kind: a step with fewer is named first, on the page and in the command's table
MOST, PART = 0.5, 0.2  # share of the whole effect from which a part is called most of it, or part of it
STEPS = {"train": "extraction", "val": "choosing direction and heads", "test": "the report"}


def grade(share: Interval) -> str:
    """Grade a share of an effect: "most of it", "part of it", "little of it", or "not shown".

    "Most" needs an interval that lies above ``MOST``; nothing is shown where the interval reaches 0 or does not exist.

    Example:
        >>> from refusal_lens.report.claims import grade
        >>> from refusal_lens.stats import Interval
        >>> [grade(Interval(*x, 32)) for x in ((0.8, 0.6, 0.9), (0.6, 0.3, 0.9), (0.1, 0.05, 0.2), (0.1, -0.1, 0.3))]
        ['most of it', 'part of it', 'little of it', 'not shown']
    """
    if math.isnan(share.low) or share.low <= 0:
        return "not shown"
    if share.low >= MOST:
        return "most of it"
    return "part of it" if share.mean >= PART else "little of it"


def few_prompts(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Name the steps for which fewer than ``FEW`` prompts of a kind remain; "" where there are enough.

    Args:
        counts: kind ("harmful", "harmless") -> split ("train", "val", "test") -> number of prompts.

    Example:
        >>> from refusal_lens.report.claims import few_prompts
        >>> few_prompts({"harmful": {"train": 128, "val": 4, "test": 100}})
        'Few prompts (under 32): 4 harmful for choosing direction and heads. What rests on them is uncertain.'
    """
    few = [
        f"{n} {kind} for {STEPS[split]}" for kind, splits in counts.items() for split, n in splits.items() if n < FEW
    ]
    return f"Few prompts (under {FEW}): {', '.join(few)}. What rests on them is uncertain." if few else ""


def few_in(summary: Mapping[str, Any]) -> str:
    """``few_prompts`` of a ``summary.json``; "" for one of an older version, which has no numbers of prompts."""
    return few_prompts(summary.get("prompts", {}))
