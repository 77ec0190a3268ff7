"""Results of replacing heads: the causal check, and attribution patching against exact patching."""

import itertools
import math
from dataclasses import dataclass

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from ..records.base import Record
from ..records.labels import Head, head_label, index_of
from ..stats import Interval, columns, fraction_interval, mean_interval

_EFFECTS = ("mean_ablation", "resample_ablation", "keep_only")
CONDITIONS = ("baseline", *_EFFECTS, *(f"random_{name}" for name in _EFFECTS), "keep_none", "direction_ablation")


@dataclass(frozen=True)
class CausalCheck(Record, axes={"prompt": "prompts", "condition": "conditions", "single": "single_labels"}):
    """Refusal metric when the chosen heads are replaced, when random heads of the same layers are, and when the
    direction is ablated.

    Attributes:
        random_heads: one draw of as many heads of the same layers per entry.
        metric: refusal metric; random conditions are the mean over draws.
        singles: heads ablated one at a time, named and random.
        predicted: change of r̂ᵀx at the last position that attribution predicts for each, mean over prompts.
        measured: change in the refusal metric when that head alone is mean-ablated.
        spearman, p_value: rank correlation of ``predicted`` and the mean of ``measured``.
        n_selection: number of prompts that chose the heads (none of them is among ``prompts``); 0 if unknown.
        n_reference: prompts that the replacements came from.
        n_last: positions replaced, from the end.
    """

    heads: tuple[Head, ...]
    random_heads: tuple[tuple[Head, ...], ...]
    metric: Float[Tensor, "condition prompt"]
    singles: tuple[Head, ...]
    predicted: Float[Tensor, "single"]
    measured: Float[Tensor, "single prompt"]
    spearman: float
    p_value: float
    prompts: tuple[str, ...]
    n_selection: int
    n_reference: int
    n_last: int
    conditions: tuple[str, ...] = CONDITIONS

    @property
    def n_reported(self) -> int:
        """Number of prompts that the metric was read on."""
        return len(self.prompts)

    def of(self, condition: str) -> Float[Tensor, "prompt"]:
        """The metric by prompt under one condition.

        Raises:
            LabelError: there is no such condition.
        """
        return self.metric[index_of(self.conditions, condition, "condition", "CausalCheck")]

    def change(self, condition: str) -> Interval:
        """Mean change from the baseline, paired by prompt, with its 95% interval."""
        return mean_interval((self.of(condition) - self.of("baseline")).tolist())

    def share(self) -> Interval:
        """Share of the direction-ablation effect that mean-ablating the heads reproduces, beyond random heads.

        Bootstrap 95% interval over prompts; NaN in a record of an older version, which lacks the direction's ablation.
        """
        if "direction_ablation" not in self.conditions:
            return Interval(math.nan, math.nan, math.nan, self.n_reported)
        part = self.of("mean_ablation") - self.of("random_mean_ablation")
        whole = self.of("direction_ablation") - self.of("baseline")
        return fraction_interval(part.tolist(), whole.tolist())

    def to_frame(self) -> pd.DataFrame:
        """One row per condition: condition, metric, change, low, high, n."""
        found = ((name, self.change(name)) for name in self.conditions)
        return pd.DataFrame(
            {"condition": name, "metric": float(self.of(name).mean()), **columns(change, "change"), "n": change.n}
            for name, change in found
        )

    @property
    def single_labels(self) -> tuple[str, ...]:
        """``L12H7`` of the heads ablated one at a time."""
        return tuple(head_label(*head) for head in self.singles)

    def singles_frame(self) -> pd.DataFrame:
        """One row per head ablated alone: label, named, predicted, measured, low, high."""
        return pd.DataFrame(
            {
                "label": head_label(*head),
                "named": head in self.heads,
                "predicted": float(predicted),
                **columns(mean_interval(measured.tolist()), "measured"),
            }
            for head, predicted, measured in zip(self.singles, self.predicted, self.measured, strict=True)
        )


@dataclass(frozen=True)
class PatchingComparison(Record):
    """Change in the refusal metric when a head's z, at all tokens, comes from the harmful prompt instead of the
    harmless one: estimated with one gradient, and measured.

    Attributes:
        estimated: TransformerLens's attribution patching, mean over pairs.
        exact: one patched run per head, mean over pairs; NaN for heads not run.
        clean, corrupt: the pairs, of equal token count.
        metric_clean, metric_corrupt: mean refusal metric of both sides.
        spearman, pearson: correlation of ``estimated`` and ``exact`` over heads.
    """

    estimated: Float[Tensor, "layer head"]
    exact: Float[Tensor, "layer head"]
    clean: tuple[str, ...]
    corrupt: tuple[str, ...]
    metric_clean: float
    metric_corrupt: float
    spearman: float
    pearson: float

    def to_frame(self) -> pd.DataFrame:
        """One row per head: label, estimated, exact."""
        rows = [
            (head_label(*head), float(self.estimated[head]), float(self.exact[head]))
            for head in itertools.product(*map(range, self.exact.shape))
        ]
        return pd.DataFrame(rows, columns=["label", "estimated", "exact"])
