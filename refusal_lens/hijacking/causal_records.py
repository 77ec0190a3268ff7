"""Results of the causal tests of one suffix."""

from dataclasses import dataclass

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from ..records.base import Record
from ..records.labels import Head, index_of
from ..report.claims import MOST
from ..stats import Interval, Rate, columns, fraction_interval, rate


@dataclass(frozen=True)
class CausalTest(Record):
    """The refusal metric under one intervention and its controls, by prompt.

    Attributes:
        reverse: whether it acts on the clean run (how much of the drop does it cause?) instead of on the suffixed
            one (how much does it bring back?).
        metric: under the intervention.
        random: under the same on random heads of the same layers, one row per draw; no rows where heads play no part.
        placebo: under a random change of equal norm at the same sites and positions.
        refused: replies with a refusal phrase under the intervention; empty if none were generated.
    """

    name: str
    reverse: bool
    metric: Float[Tensor, "prompt"]
    random: Float[Tensor, "draw prompt"]
    placebo: Float[Tensor, "prompt"]
    refused: tuple[bool, ...] = ()


@dataclass(frozen=True)
class CausalTests(Record):
    """All causal tests of one suffix.

    Attributes:
        plain, suffixed: refusal metric of the clean and the suffixed run.
        random_heads: the draws of random heads of the same layers.
        refused_plain, refused_suffixed: replies with a refusal phrase, if any were generated.
        threshold: prompts with a higher metric count as refused, where no replies were generated.
    """

    tests: tuple[CausalTest, ...]
    plain: Float[Tensor, "prompt"]
    suffixed: Float[Tensor, "prompt"]
    heads: tuple[Head, ...]
    random_heads: tuple[tuple[Head, ...], ...]
    refused_plain: tuple[bool, ...] = ()
    refused_suffixed: tuple[bool, ...] = ()
    threshold: float = 0.0

    def test(self, name: str) -> CausalTest:
        """One test by name.

        Raises:
            LabelError: there is no such test.
        """
        return self.tests[index_of([t.name for t in self.tests], name, "test", "CausalTests")]

    def _fraction(self, metric: Float[Tensor, "prompt"], reverse: bool) -> Interval:
        part = self.plain - metric if reverse else metric - self.suffixed
        return fraction_interval(part.tolist(), (self.plain - self.suffixed).tolist())

    def recovered(self, name: str) -> Interval:
        """Share of the drop in the refusal metric that a test brings back (a reverse one: causes)."""
        t = self.test(name)
        return self._fraction(t.metric, t.reverse)

    def recovered_random(self, name: str) -> Interval:
        """The same with random heads, mean over draws; NaN where heads play no part."""
        t = self.test(name)
        return self._fraction(t.random.mean(0), t.reverse)

    def recovered_placebo(self, name: str) -> Interval:
        """The same with the norm-matched placebo."""
        t = self.test(name)
        return self._fraction(t.placebo, t.reverse)

    def refusals_back(self, name: str) -> Rate:
        """Share of the refusals lost to the suffix that return under the intervention, by replies where there are
        any, else by the metric."""
        t = self.test(name)
        if t.refused and self.refused_plain and self.refused_suffixed:
            before, after, now = self.refused_plain, self.refused_suffixed, t.refused
        else:
            before, after, now = (tuple((x > self.threshold).tolist()) for x in (self.plain, self.suffixed, t.metric))
        return rate([c for a, b, c in zip(before, after, now, strict=True) if a and not b])

    def passed(self, name: str, least: float = MOST) -> bool:
        """At least ``least`` of the drop, and beyond the intervals of random heads and placebo."""
        found, placebo = self.recovered(name), self.recovered_placebo(name)
        others = [placebo] + ([self.recovered_random(name)] if len(self.test(name).random) else [])
        return found.mean >= least and all(found.low > max(o.high, 0.0) for o in others)

    def to_frame(self) -> pd.DataFrame:
        """One row per test: fraction with interval, random heads, placebo, refusals back, n."""
        rows = []
        for t in self.tests:
            found = self.recovered(t.name)
            back = rate([]) if t.reverse else self.refusals_back(t.name)
            row: dict[str, object] = {"test": t.name, "acts on": "clean run" if t.reverse else "suffixed run"}
            row |= columns(found, "fraction")
            row |= columns(self.recovered_random(t.name), "random_heads", "random_")
            row |= columns(self.recovered_placebo(t.name), "placebo", "placebo_")
            row |= {"refusals_back": back.rate, "lost": back.n, "passed": self.passed(t.name), "n": found.n}
            rows.append(row)
        return pd.DataFrame(rows)
