"""Results about chosen heads: which they are, and whether they matter."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from ..records import Record
from ..stats import Interval, mean_interval
from .records import Head, HeadContributions, head_label

CONDITIONS = (
    "baseline",
    "mean_ablation",
    "resample_ablation",
    "keep_only",
    "random_mean_ablation",
    "random_resample_ablation",
    "random_keep_only",
    "keep_none",
)


@dataclass(frozen=True)
class HeadReport(Record):
    """The top heads of a direction (paper Fig. 6a's selection), without the optimism of choosing and reporting on the
    same prompts.

    Attributes:
        heads: (layer, head), highest mean over the selection prompts first.
        selection: contributions on the prompts that chose them.
        report: contributions on other prompts: what to report.
        contrast: contributions on prompts of the other kind (harmless), or None.
        p_values: two-sided, by head, Benjamini-Hochberg adjusted over all heads, on the report prompts only.
        test: which test: report against contrast (Mann-Whitney), or against 0 (Wilcoxon) without a contrast.
    """

    heads: tuple[Head, ...]
    selection: HeadContributions
    report: HeadContributions
    contrast: HeadContributions | None
    p_values: Float[Tensor, "layer head"]
    test: str
    intervals: tuple[Interval, ...] = field(default=())

    @property
    def n_selection(self) -> int:
        """Number of prompts that chose the heads."""
        return len(self.selection.prompts)

    @property
    def n_report(self) -> int:
        """Number of prompts reported on; none of them chose."""
        return len(self.report.prompts)

    @property
    def labels(self) -> tuple[str, ...]:
        """``L12H7`` of the chosen heads."""
        return tuple(head_label(*head) for head in self.heads)

    def ranked(self) -> tuple[Head, ...]:
        """Every head: the chosen ones, then the others by what they write on the report prompts, most first."""
        mean = self.report.mean
        order = mean.abs().flatten().argsort(descending=True).tolist()
        heads = (divmod(i, mean.shape[1]) for i in order)
        return (*self.heads, *(head for head in heads if head not in self.heads))

    @property
    def share(self) -> float:
        """The chosen heads' share of what all heads with a positive mean write, on the report prompts."""
        mean = self.report.mean
        return float(sum(mean[layer, head] for layer, head in self.heads) / mean.clamp_min(0).sum())

    def to_frame(self) -> pd.DataFrame:
        """One row a chosen head: label, selection, report, low, high, contrast, p."""
        rows = []
        for (layer, head), found in zip(self.heads, self.intervals, strict=True):
            other = float("nan") if self.contrast is None else float(self.contrast.mean[layer, head])
            chosen_by, p = float(self.selection.mean[layer, head]), float(self.p_values[layer, head])
            rows.append((head_label(layer, head), chosen_by, found.mean, found.low, found.high, other, p))
        return pd.DataFrame(rows, columns=["label", "selection", "report", "low", "high", "contrast", "p"])


@dataclass(frozen=True)
class CausalCheck(Record):
    """Refusal metric when the named heads are replaced, beside random heads of the same layers.

    Attributes:
        heads: the heads tested.
        random_heads: one draw of as many heads of the same layers per entry.
        metric: refusal metric; random conditions are the mean over draws.
        singles: heads ablated one at a time, named and random.
        predicted: change of r̂ᵀx at the last position that attribution predicts for each, mean over prompts.
        measured: change of the refusal metric when that head alone is mean-ablated.
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
    def n_report(self) -> int:
        """Number of prompts that the metric was read on."""
        return len(self.prompts)

    def of(self, condition: str) -> Float[Tensor, "prompt"]:
        """The metric by prompt under one condition."""
        return self.metric[self.conditions.index(condition)]

    def change(self, condition: str) -> Interval:
        """Mean change from the baseline, paired by prompt, with its 95% interval."""
        return mean_interval((self.of(condition) - self.of("baseline")).tolist())

    def to_frame(self) -> pd.DataFrame:
        """One row a condition: condition, metric, change, low, high, n."""
        rows = []
        for name in self.conditions:
            found = self.change(name)
            rows.append((name, float(self.of(name).mean()), found.mean, found.low, found.high, found.n))
        return pd.DataFrame(rows, columns=["condition", "metric", "change", "low", "high", "n"])

    def singles_frame(self) -> pd.DataFrame:
        """One row a head ablated alone: label, named, predicted, measured, low, high."""
        rows = []
        for i, (layer, head) in enumerate(self.singles):
            found = mean_interval(self.measured[i].tolist())
            named = (layer, head) in self.heads
            rows.append((head_label(layer, head), named, float(self.predicted[i]), found.mean, found.low, found.high))
        return pd.DataFrame(rows, columns=["label", "named", "predicted", "measured", "low", "high"])


@dataclass(frozen=True)
class PatchingComparison(Record):
    """Change of the refusal metric when a head's z, at all tokens, comes from the harmful prompt instead of the
    harmless one: estimated with one gradient, and measured.

    Attributes:
        estimated: TransformerLens's attribution patching, mean over pairs.
        exact: one patched run a head, mean over pairs; NaN for heads not run.
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
        """One row a head: label, estimated, exact."""
        rows = [
            (head_label(layer, head), float(self.estimated[layer, head]), float(self.exact[layer, head]))
            for layer in range(self.exact.shape[0])
            for head in range(self.exact.shape[1])
        ]
        return pd.DataFrame(rows, columns=["label", "estimated", "exact"])
