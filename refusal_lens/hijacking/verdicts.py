"""What the tests allow to be said of a suffix, in words."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from .records import HijackingReport, SuffixResult

MECHANISMS = {
    "none": "does not work",
    "untested": "works; not tested causally",
    "top heads": "attention of the top heads",
    "attention": "attention of many heads",
    "direction": "the direction, not attention from the post-instruction positions",
    "otherwise": "works otherwise",
}


@dataclass(frozen=True)
class Mechanism:
    """The verdict on one suffix.

    Attributes:
        mechanism: one of ``MECHANISMS``'s values.
        hijacks: whether the causal test passed: cutting the top heads' edges to the suffix brings back at least half
            of the drop, beyond random heads and placebo, and their attention to it rose above that to random tokens.
        sentence: the finding with its numbers; "hijack" and "because" appear only if ``hijacks``.
    """

    mechanism: str
    hijacks: bool
    sentence: str


def verdict(result: SuffixResult) -> Mechanism:
    """Say what was shown of a suffix, and no more."""
    suffixed, random = result.suffixed.refusal_rate, result.random.refusal_rate
    rates = f"refused {suffixed} with the suffix, {random} with random tokens"
    if not result.works:
        return Mechanism(MECHANISMS["none"], False, f"It does not stop refusals beyond random tokens: {rates}.")
    if result.causal is None:
        return Mechanism(MECHANISMS["untested"], False, f"It stops refusals ({rates}); how was not tested.")
    tests, rise = result.causal, result.attention_rise
    top, all_heads = tests.recovered("cut top heads"), tests.recovered("cut all heads")
    restored = tests.recovered("restore r̂")
    moved, changed = result.parts_of_drop()
    split = f" Of the top heads' drop from random tokens, {moved} is attention moved and {changed} values changed."
    if tests.passed("cut top heads") and rise.low > 0:
        return Mechanism(
            MECHANISMS["top heads"],
            True,
            f"It stops refusals ({rates}) because it hijacks the top heads' attention: their attention to it rises by "
            f"{rise} above random tokens, and cutting these edges brings back {top} of the drop of the refusal metric; "
            f"random heads {tests.recovered_random('cut top heads')}, placebo "
            f"{tests.recovered_placebo('cut top heads')}." + split,
        )
    if tests.passed("cut all heads"):
        return Mechanism(
            MECHANISMS["attention"],
            False,
            f"It stops refusals ({rates}) through attention from the post-instruction positions, but not through the "
            f"top heads alone: cutting all heads' edges brings back {all_heads} of the drop, the top heads' {top} "
            f"(random heads {tests.recovered_random('cut top heads')}); attention to it changes by {rise} against "
            "random tokens." + split,
        )
    if tests.passed("restore r̂"):
        return Mechanism(
            MECHANISMS["direction"],
            False,
            f"It stops refusals ({rates}) and acts through the direction, but cutting attention from the "
            f"post-instruction positions brings back only {all_heads} of the drop; restoring the direction {restored}."
            + split,
        )
    return Mechanism(
        MECHANISMS["otherwise"],
        False,
        f"It stops refusals ({rates}) otherwise: cutting attention brings back {all_heads} of the drop, restoring the "
        f"direction {restored} (placebo {tests.recovered_placebo('restore r̂')})." + split,
    )


def summary_frame(report: HijackingReport) -> pd.DataFrame:
    """One row a suffix that was looked into."""
    rows = []
    for result, p in zip(report.results, report.adjusted_p(), strict=True):
        drop = result.metric_drop
        rows.append(
            {
                "kind": result.suffix.kind,
                "suffix": result.suffix.text,
                "tokens": max(result.n_tokens),
                "refused": result.suffixed.refusal_rate.rate,
                "refused_random": result.random.refusal_rate.rate,
                "refused_shuffled": float("nan") if result.shuffled is None else result.shuffled.refusal_rate.rate,
                "metric_drop": drop.mean,
                "low": drop.low,
                "high": drop.high,
                "p": p,
                "strength": result.strength.mean,
                "attention_rise": result.attention_rise.mean,
                "departs_at": -1 if (site := result.departure()) is None else site,
                "mechanism": verdict(result).mechanism,
                "n": result.suffixed.n,
            }
        )
    return pd.DataFrame(rows)
