"""The mechanism of a suffix, in words that its tests support."""

from __future__ import annotations

from dataclasses import dataclass

from ..records.labels import head_label
from ..report.claims import grade
from ..stats import Interval, Rate
from .observation_records import SuffixResult

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
    """How one suffix works, as far as it was shown.

    Attributes:
        name: one of ``MECHANISMS``'s values.
        hijacks: whether the causal test passed: cutting the top heads' edges to the suffix brings back at least half
            of the drop, beyond random heads and placebo, and their attention to it rose above that to random tokens.
        sentence: the finding with its numbers; "hijack" and "because" appear only if ``hijacks``, and "in part because"
            unless the whole interval of what the cut brings back lies above one half.
    """

    name: str
    hijacks: bool
    sentence: str


def mechanism(result: SuffixResult) -> Mechanism:
    """Name the mechanism that the tests of a suffix show. Brackets are 95% intervals over the prompts."""
    suffixed, random = result.suffixed.refusal_rate, result.random.refusal_rate
    rates = f"refused {_percent(suffixed)} with the suffix, {_percent(random)} with random tokens; n = {suffixed.n}"

    def found(key: str, sentence: str) -> Mechanism:
        return Mechanism(MECHANISMS[key], key == "top heads", sentence)

    if not result.works:
        return found("none", f"It does not stop refusals beyond random tokens: {rates}.")
    if result.causal is None:
        return found("untested", f"It stops refusals ({rates}); how was not tested.")
    tests, rise, cut = result.causal, result.attention_rise, "cut top heads"
    top, all_heads, restored = (_number(tests.recovered(name)) for name in (cut, "cut all heads", "restore r̂"))
    others, placebo = _number(tests.recovered_random(cut)), _number(tests.recovered_placebo(cut))
    controls = f"{grade(tests.recovered(cut))}; random heads {others}, placebo {placebo}"
    whole, along = (grade(tests.recovered(name)) for name in ("cut all heads", "restore r̂"))
    moved, changed = (_number(part) for part in result.parts_of_drop())
    split = f" Of the top heads' drop from random tokens, {moved} is attention moved and {changed} values changed."
    if tests.passed(cut) and rise.low > 0:
        per_head = zip(result.suffixed.top_heads, result.head_rises(), strict=True)
        head, most = max(per_head, key=lambda pair: pair[1].mean)
        part = "" if grade(tests.recovered(cut)) == "most of it" else ", in part"
        return found(
            "top heads",
            f"It stops refusals ({rates}){part} because it hijacks the top heads' attention: their attention to it "
            f"rises by {_number(rise)} above random tokens (mean over {len(result.suffixed.top_heads)} heads; most in "
            f"{head_label(*head)}, {_number(most)}), and cutting these edges brings back {top} of the drop of the "
            f"refusal metric ({controls}) and {_percent(tests.refusals_back(cut))} of the lost refusals." + split,
        )
    if tests.passed("cut all heads"):
        return found(
            "attention",
            f"It stops refusals ({rates}) through attention from the post-instruction positions, but not through the "
            f"top heads alone: cutting all heads' edges brings back {all_heads} of the drop of the refusal metric "
            f"({whole}), the top heads' {top} ({controls}); the top heads' attention to it changes by {_number(rise)} "
            "against random tokens." + split,
        )
    if tests.passed("restore r̂"):
        return found(
            "direction",
            f"It stops refusals ({rates}) and acts through the direction, but cutting attention from the "
            f"post-instruction positions brings back only {all_heads} of the drop of the refusal metric ({whole}); "
            f"restoring the direction {restored} ({along})." + split,
        )
    return found(
        "otherwise",
        f"It stops refusals ({rates}) otherwise: cutting attention brings back {all_heads} of the drop of the refusal "
        f"metric ({whole}), restoring the direction {restored} ({along}; placebo "
        f"{_number(tests.recovered_placebo('restore r̂'))})." + split,
    )


def _number(found: Interval) -> str:
    return f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _percent(found: Rate) -> str:
    return f"{found.rate:.0%} [{found.low:.0%}, {found.high:.0%}]"
