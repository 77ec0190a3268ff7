"""Over-refusal: results of ``over_refusal``."""

from dataclasses import dataclass

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from ..records.base import Record
from ..records.direction import Direction
from ..records.labels import index_of
from ..refusal.records import Completions
from ..report.claims import grade_beyond, net_effect, percent
from ..stats import Interval, Rate, columns, mean_interval

FALSE_REFUSAL = "false_refusal_ablation"


@dataclass(frozen=True)
class OverRefusal(Record, axes={"condition": "conditions", "prompt": "prompt_sets"}):
    """Refusals of harmful, borderline and harmless test prompts under every condition.

    Attributes:
        false_refusal: the direction of false refusal, orthogonal to r̂.
        cosine: of the difference in means with r̂ before it was made orthogonal.
        source: where the borderline prompts come from.
        trained: share of the borderline training prompts that the model refuses, by the refusal metric.
        conditions: labels of the metric's first axis; after those of r̂, ablation of the direction of false refusal and
            of a random direction orthogonal to r̂.
        completions: judged replies, one entry per prompt set.
        metric: refusal metric of every prompt, set after set.
    """

    direction: Direction
    false_refusal: Direction
    cosine: float
    source: str
    trained: Rate
    conditions: tuple[str, ...]
    completions: tuple[Completions, ...]
    metric: Float[Tensor, "condition prompt"]

    @property
    def sets(self) -> tuple[str, ...]:
        """Names of the prompt sets: "harmful", "contrast" where there are contrasts, "borderline", "harmless"."""
        return tuple(said.prompt_set for said in self.completions)

    @property
    def prompt_sets(self) -> tuple[str, ...]:
        """Set of each prompt."""
        return tuple(s.prompt_set for s in self.completions for _ in s.of("baseline"))

    def rates(self, prompt_set: str) -> dict[str, Rate]:
        """Refusal rate of a set by condition, with 95% Clopper-Pearson intervals; LabelError for another set."""
        return self.completions[index_of(self.sets, prompt_set, "prompt set", "OverRefusal")].rates

    def change(self, prompt_set: str, condition: str) -> Interval:
        """Mean change of a set's refusal metric from the baseline, paired by prompt, bootstrap 95% interval; LabelError
        where there is no such set or condition."""
        index_of(self.sets, prompt_set, "prompt set", "OverRefusal")
        row = self.metric[index_of(self.conditions, condition, "condition", "OverRefusal")]
        own = [name == prompt_set for name in self.prompt_sets]
        return mean_interval((row - self.metric[self.conditions.index("baseline")])[own].tolist())

    def summary(self) -> tuple[str, ...]:
        """How often harmless requests that look harmful are refused, and what ablating false refusal does, in words."""
        rates = self.rates("borderline")
        usual = self.rates("harmless")["baseline"]
        said = [
            f"Of the borderline prompts ({self.source}) the model refuses {rates['baseline']}, of plain harmless ones "
            f"{usual}. The direction of false refusal comes from {self.trained.n} other borderline prompts, of which "
            f"{percent(self.trained)} are refused; before it was made orthogonal to r̂ its cosine with r̂ was "
            f"{self.cosine:.2f}."
        ]
        for name in ("borderline", "harmful"):
            rates = self.rates(name)
            effect, placebo = (net_effect(rates, c, -1) for c in (FALSE_REFUSAL, f"random_{FALSE_REFUSAL}"))
            along = f"; r̂ {self._from(name, 'ablation')}" if "ablation" in rates else ""
            said.append(
                f"Ablating it on {name} prompts: refused {self._from(name, FALSE_REFUSAL)}; random, orthogonal to r̂ "
                f"{self._from(name, f'random_{FALSE_REFUSAL}')}{along}. Share of these refusals gone: "
                f"{percent(effect)} (random {percent(placebo)}): {grade_beyond(effect, placebo)}."
            )
        if self.trained.rate < 0.1 or self.rates("borderline")["baseline"].rate < 0.1:
            said.append("The model refuses few borderline prompts, so that there is little false refusal to take away.")
        return tuple(said)

    def _from(self, prompt_set: str, condition: str) -> str:
        rates, change = self.rates(prompt_set), self.change(prompt_set, condition)
        moved = f"metric {change.mean:+.2f} [{change.low:+.2f}, {change.high:+.2f}]"
        return f"{percent(rates['baseline'])} -> {percent(rates[condition])} ({moved})"

    def to_frame(self) -> pd.DataFrame:
        """One row per prompt set and condition: share refused, share answered, change of the metric; intervals, n."""
        rows = []
        for name, said in zip(self.sets, self.completions, strict=True):
            classes = said.classes
            for condition, rate in said.rates.items():
                row = {"prompts": name, "condition": condition, **columns(rate, "refused", "refused_")}
                row |= columns(classes[condition]["answered"], "answered", "answered_")
                rows.append(row | columns(self.change(name, condition), "change", "change_") | {"n": rate.n})
        return pd.DataFrame(rows)
