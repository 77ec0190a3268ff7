"""Wording of claims by effect size and number of prompts: the only place with its thresholds (docs/method.md)."""

import math
from collections.abc import Mapping
from typing import Any

from ..stats import Interval, Rate, rate

FEW = 32  # prompts of a kind: a step with fewer is named first, on the page and in the command's table
MOST, PART = 0.5, 0.2  # share of the whole effect from which a part is called most of it, or part of it
NOT_SHOWN = "not shown"
STEPS = {
    "train": "extraction",
    "val": "choosing the direction and the heads",
    "test": "the report",
    "metric": "the refusal metric",
    "causal": "the causal check of the heads",
    "suffixes": "the suffixes",
}


def grade(share: Interval | Rate) -> str:
    """Grade a share of an effect: "most of it", "part of it", "little of it", or "not shown".

    "Most" needs an interval that lies above ``MOST``; nothing is shown where the interval reaches 0 or does not exist.

    Example:
        >>> from refusal_lens.report.claims import grade
        >>> from refusal_lens.stats import Interval
        >>> [grade(Interval(*x, 32)) for x in ((0.8, 0.6, 0.9), (0.6, 0.3, 0.9), (0.1, 0.05, 0.2), (0.1, -0.1, 0.3))]
        ['most of it', 'part of it', 'little of it', 'not shown']
    """
    if math.isnan(share.low) or share.low <= 0:
        return NOT_SHOWN
    if share.low >= MOST:
        return "most of it"
    return "part of it" if share.mean >= PART else "little of it"


def grade_beyond(share: Interval | Rate, placebo: Interval | Rate) -> str:
    """``grade``, but "not shown" where the interval does not lie above the placebo's."""
    return grade(share) if share.low > placebo.high else NOT_SHOWN


def percent(share: Interval | Rate) -> str:
    """Write a share with its interval, e.g. "84% [70%, 95%]"."""
    if not math.isfinite(share.mean):
        return "an unknown share"
    if math.isnan(share.low):
        return f"{share.mean:.0%} (no interval)"
    return f"{share.mean:.0%} [{share.low:.0%}, {share.high:.0%}]"


def net_effect(rates: Mapping[str, Rate], condition: str, sign: int) -> Rate:
    """Share of the baseline's refusals that are gone under a condition (sign -1), or of its answers that became
    refusals (+1), with the exact 95% interval. Changes the other way are subtracted.

    Example:
        >>> from refusal_lens.report.claims import net_effect
        >>> from refusal_lens.stats import rate
        >>> rates = {"baseline": rate([True] * 8 + [False] * 2), "ablation": rate([True] * 2 + [False] * 8)}
        >>> net_effect(rates, "ablation", -1).rate
        0.75
    """
    before, after = (round(r.rate * r.n) if r.n else 0 for r in (rates["baseline"], rates[condition]))
    whole = before if sign < 0 else rates["baseline"].n - before
    changed = min(whole, max(0, sign * (after - before)))
    return rate([True] * changed + [False] * (whole - changed))


def few_prompts(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Name the steps for which fewer than ``FEW`` prompts of a kind remain; "" where there are enough.

    Args:
        counts: kind ("harmful", "harmless") -> step (of ``STEPS``) -> number of prompts.

    Example:
        >>> from refusal_lens.report.claims import few_prompts
        >>> few_prompts({"harmful": {"train": 128, "val": 4, "test": 100}})
        'Few prompts (under 32): 4 harmful for choosing the direction and the heads. What rests on them is uncertain.'
    """
    few = [f"{n} {kind} for {STEPS[step]}" for kind, steps in counts.items() for step, n in steps.items() if n < FEW]
    return f"Few prompts (under {FEW}): {', '.join(few)}. What rests on them is uncertain." if few else ""


def few_in(summary: Mapping[str, Any], causal: int | None = None) -> str:
    """``few_prompts`` of a ``summary.json`` and of the prompts of a causal check; "" for a summary of an older version,
    which has no numbers of prompts."""
    if "prompts" not in summary:
        return ""
    refused = summary["refusal_metric"]["harmful"]["baseline"]["n"]
    harmful = summary["prompts"]["harmful"] | ({} if causal is None else {"causal": causal})
    return few_prompts({**summary["prompts"], "harmful": harmful, "refused harmful": {"metric": refused}})
