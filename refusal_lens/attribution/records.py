"""Results of attribution: what wrote along a direction, or into a logit difference."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ResultError
from ..records.base import Record
from ..records.direction import Direction
from ..records.labels import Head, head_label
from ..stats import Interval, mean_interval


@dataclass(frozen=True)
class HeadContributions(Record):
    """What each head writes along a direction at one position: z · (W_O r̂), through the post-norm where there is one.

    Attributes:
        values: residual-stream units; exact parts of hook_attn_out · r̂ (the bias is not a head's).
        direction: the direction.
        prompts: the requests (with their suffixes), in the order of the last axis.
        pos: position, counted from the end (-1 is the last token).
    """

    values: Float[Tensor, "layer head prompt"]
    direction: Direction
    prompts: tuple[str, ...]
    pos: int = -1

    @property
    def labels(self) -> tuple[tuple[str, ...], ...]:
        """``L12H7`` by [layer][head]."""
        return tuple(
            tuple(head_label(layer, head) for head in range(self.values.shape[1]))
            for layer in range(self.values.shape[0])
        )

    @property
    def mean(self) -> Float[Tensor, "layer head"]:
        """Mean over prompts."""
        return self.values.mean(-1)

    def interval(self, layer: int, head: int) -> Interval:
        """Mean of one head with its bootstrap 95% interval over prompts."""
        return mean_interval(self.values[layer, head].tolist())

    def to_frame(self) -> pd.DataFrame:
        """One row a head: layer, head, label, mean, low, high; highest mean first."""
        rows = []
        for layer in range(self.values.shape[0]):
            for head in range(self.values.shape[1]):
                found = self.interval(layer, head)
                rows.append((layer, head, head_label(layer, head), found.mean, found.low, found.high))
        frame = pd.DataFrame(rows, columns=["layer", "head", "label", "mean", "low", "high"])
        return frame.sort_values("mean", ascending=False, ignore_index=True)


@dataclass(frozen=True)
class ComponentContributions(Record):
    """The residual stream of one position along one vector, taken apart into every write.

    embed + heads + attn_bias + mlp of the layers below l sum to ``resid[l]``.

    Attributes:
        embed: what enters block 0 (token embedding, and learned positions where there are any).
        heads: each head's share of hook_attn_out.
        attn_bias: the rest of hook_attn_out: output bias and the post-norm's bias.
        mlp: hook_mlp_out.
        resid: measured resid_pre of every layer, and last the final resid_post.
        prompts, pos: as in ``HeadContributions``.
        direction: the direction, or None where the vector is a logit difference.
    """

    embed: Float[Tensor, "prompt"]
    heads: Float[Tensor, "layer head prompt"]
    attn_bias: Float[Tensor, "layer prompt"]
    mlp: Float[Tensor, "layer prompt"]
    resid: Float[Tensor, "sites prompt"]
    prompts: tuple[str, ...]
    pos: int = -1
    direction: Direction | None = None

    @property
    def attn(self) -> Float[Tensor, "layer prompt"]:
        """Whole attention layers: heads and bias."""
        return self.heads.sum(1) + self.attn_bias

    @property
    def values(self) -> Float[Tensor, "component prompt"]:
        """embed, then attention and MLP of each layer (``labels`` names them)."""
        layers = torch.stack([self.attn, self.mlp], 1).flatten(0, 1)
        return torch.cat([self.embed[None], layers])

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the rows of ``values``: embed, L0 attn, L0 mlp, L1 attn ..."""
        return ("embed", *(f"L{layer} {part}" for layer in range(len(self.mlp)) for part in ("attn", "mlp")))

    @property
    def parts(self) -> Float[Tensor, "part prompt"]:
        """The finest rows: embed, every head, attention biases, MLPs (``part_labels`` names them)."""
        rows = [self.embed[None]]
        for layer in range(len(self.mlp)):
            rows += [self.heads[layer], self.attn_bias[layer][None], self.mlp[layer][None]]
        return torch.cat(rows)

    @property
    def part_labels(self) -> tuple[str, ...]:
        """Names of the rows of ``parts``."""
        labels = ["embed"]
        for layer in range(len(self.mlp)):
            labels += [head_label(layer, head) for head in range(self.heads.shape[1])]
            labels += [f"L{layer} attn bias", f"L{layer} mlp"]
        return tuple(labels)

    @property
    def total(self) -> Float[Tensor, "prompt"]:
        """Measured final resid_post along the vector."""
        return self.resid[-1]

    @property
    def errors(self) -> Float[Tensor, "sites"]:
        """Largest |sum of the parts - measured resid| at each layer, over prompts."""
        written = torch.cat([self.embed[None], self.attn + self.mlp])
        return (written.cumsum(0) - self.resid).abs().amax(-1)

    def head_contributions(self) -> HeadContributions:
        """The heads alone (only for a direction)."""
        if self.direction is None:
            raise ResultError("these are contributions to a logit difference, not to a direction; read .heads")
        return HeadContributions(self.heads, self.direction, self.prompts, self.pos)


@dataclass(frozen=True)
class LogitAttribution(Record):
    """Direct logit attribution: the logit difference of two groups of tokens, by component (last position).

    The parts and the two constants sum to ``before_cap``; ``measured`` is what the model gives, which for a
    model with softcapped logits is another number (the cap is not linear, so no parts can sum to it).

    Attributes:
        components: contributions in logits, through the frozen final norm (its scale is each prompt's own).
        norm_bias: the final norm's bias, one number a prompt (0 for RMS norms).
        unembed_bias: b_U's share.
        before_cap: measured logit difference before softcap.
        measured: the model's own logit difference.
        cap: c of c * tanh(logits / c), 0 for none.
        answer, against: token texts of the two groups; the mean logit of each group is taken.
    """

    components: ComponentContributions
    norm_bias: Float[Tensor, "prompt"]
    unembed_bias: Float[Tensor, "prompt"]
    before_cap: Float[Tensor, "prompt"]
    measured: Float[Tensor, "prompt"]
    cap: float
    answer: tuple[str, ...]
    against: tuple[str, ...]

    @property
    def values(self) -> Float[Tensor, "component prompt"]:
        """embed, attention and MLP of each layer, final norm's bias, unembedding's bias."""
        return torch.cat([self.components.values, self.norm_bias[None], self.unembed_bias[None]])

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the rows of ``values``."""
        return (*self.components.labels, "norm bias", "unembed bias")

    @property
    def parts(self) -> Float[Tensor, "part prompt"]:
        """The finest rows: every head, bias and MLP."""
        return torch.cat([self.components.parts, self.norm_bias[None], self.unembed_bias[None]])

    @property
    def part_labels(self) -> tuple[str, ...]:
        """Names of the rows of ``parts``."""
        return (*self.components.part_labels, "norm bias", "unembed bias")

    @property
    def error(self) -> float:
        """Largest |sum of the parts - before_cap| over prompts, in logits."""
        return float((self.parts.sum(0) - self.before_cap).abs().max())

    def to_frame(self) -> pd.DataFrame:
        """One row a part: label, mean, low, high; largest magnitude first."""
        found = [mean_interval(row.tolist()) for row in self.parts]
        frame = pd.DataFrame(
            [(name, i.mean, i.low, i.high) for name, i in zip(self.part_labels, found, strict=True)],
            columns=["label", "mean", "low", "high"],
        )
        return frame.sort_values("mean", key=abs, ascending=False, ignore_index=True)


@dataclass(frozen=True)
class NeuronContributions(Record):
    """What single MLP neurons write along a direction; only the strongest are kept, by mean magnitude.

    Attributes:
        values: activation · (W_out r̂), through the post-norm where there is one.
        layers, neurons: where each row comes from.
        rest: the neurons not kept and the biases, by layer of ``rest_layers``; with ``values`` it sums to the MLP's
            row.
        prompts: the requests with their suffixes.
    """

    values: Float[Tensor, "neuron prompt"]
    layers: tuple[int, ...]
    neurons: tuple[int, ...]
    rest: Float[Tensor, "layer prompt"]
    rest_layers: tuple[int, ...]
    prompts: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """``L12N345``."""
        return tuple(f"L{layer}N{neuron}" for layer, neuron in zip(self.layers, self.neurons, strict=True))


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
