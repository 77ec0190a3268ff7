"""Results of attribution: contributions to a direction or to a logit difference, and its top heads."""

import itertools
from dataclasses import dataclass, field

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ResultError
from ..records.base import Record
from ..records.direction import Direction
from ..records.labels import Head, head_label
from ..stats import Interval, columns, mean_interval

BIASES = ("norm bias", "unembed bias")


def highest(grid: Float[Tensor, "layer head"], top: int) -> tuple[Head, ...]:
    """The ``top`` heads with the highest values, highest first."""
    return tuple(divmod(i, grid.shape[1]) for i in grid.flatten().topk(min(top, grid.numel())).indices.tolist())


@dataclass(frozen=True)
class HeadContributions(Record, axes={"prompt": "prompts"}):
    """Contribution of each head along a direction at one position: z · (W_O r̂), through the post-norm if there is one.

    Attributes:
        values: residual-stream units; exact parts of hook_attn_out · r̂ (the bias is not a head's).
        prompts: the requests with their suffixes.
        pos: position, counted from the end.
    """

    values: Float[Tensor, "layer head prompt"]
    direction: Direction
    prompts: tuple[str, ...]
    pos: int = -1

    @property
    def labels(self) -> tuple[tuple[str, ...], ...]:
        """``L12H7`` by ``[layer][head]``."""
        n_layers, n_heads = self.values.shape[:2]
        return tuple(tuple(head_label(layer, head) for head in range(n_heads)) for layer in range(n_layers))

    @property
    def mean(self) -> Float[Tensor, "layer head"]:
        """Mean over prompts."""
        return self.values.mean(-1)

    def interval(self, layer: int, head: int) -> Interval:
        """Mean of one head with its bootstrap 95% interval over prompts."""
        return mean_interval(self.values[layer, head].tolist())

    def to_frame(self) -> pd.DataFrame:
        """One row per head: layer, head, label, mean, low, high, n; highest mean first."""
        return self._head(None)

    def _head(self, rows: int | None) -> pd.DataFrame:
        """The first rows; intervals of thousands of heads would keep a notebook waiting."""
        best = self.mean.flatten().argsort(descending=True)[:rows].tolist()
        places = [divmod(i, self.values.shape[1]) for i in best]
        frame = pd.DataFrame(
            {"layer": layer, "head": head, "label": head_label(layer, head), **columns(found, "mean"), "n": found.n}
            for layer, head in places
            for found in [self.interval(layer, head)]
        )
        return frame.sort_values("mean", ascending=False, ignore_index=True)


@dataclass(frozen=True)
class ComponentContributions(Record, axes={"prompt": "prompts", "part": "part_labels"}, also=("parts",)):
    """The residual stream of one position along one vector, split into all writes.

    embed + heads + attn_bias + mlp of the layers below l sum to ``resid[l]``.

    Attributes:
        embed: what enters block 0 (token embedding, and learned positions where there are any).
        heads: each head's share of hook_attn_out.
        attn_bias: the rest of hook_attn_out: output bias and the post-norm's bias.
        mlp: hook_mlp_out.
        resid: measured resid_pre of every layer, and last the final resid_post.
        direction: None where the vector is a logit difference.
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
        return torch.cat([self.embed[None], torch.stack([self.attn, self.mlp], 1).flatten(0, 1)])

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the rows of ``values``: embed, L0 attn, L0 mlp, L1 attn ..."""
        return ("embed", *(f"L{layer} {part}" for layer in range(len(self.mlp)) for part in ("attn", "mlp")))

    @property
    def parts(self) -> Float[Tensor, "part prompt"]:
        """The finest rows: embed, every head, attention biases, MLPs (``part_labels`` names them)."""
        rows = torch.cat([self.heads, self.attn_bias[:, None], self.mlp[:, None]], 1)
        return torch.cat([self.embed[None], rows.flatten(0, 1)])

    @property
    def part_labels(self) -> tuple[str, ...]:
        """Names of the rows of ``parts``."""
        n_layers, n_heads = self.heads.shape[:2]
        names = ((*(head_label(i, h) for h in range(n_heads)), f"L{i} attn bias", f"L{i} mlp") for i in range(n_layers))
        return ("embed", *itertools.chain.from_iterable(names))

    @property
    def total(self) -> Float[Tensor, "prompt"]:
        """Measured final resid_post along the vector."""
        return self.resid[-1]

    @property
    def errors(self) -> Float[Tensor, "sites"]:
        """Largest |sum of the parts - measured resid| at each layer, over prompts."""
        written = torch.cat([self.embed[None], self.attn + self.mlp])
        return (written.cumsum(0) - self.resid).abs().amax(-1)

    def to_frame(self) -> pd.DataFrame:
        """One row per part: label, mean, low, high; largest magnitude first."""
        return _parts_frame(self.part_labels, self.parts)

    def head_contributions(self) -> HeadContributions:
        """The heads alone (only for a direction)."""
        if self.direction is None:
            raise ResultError("these are contributions to a logit difference, not to a direction; read .heads")
        return HeadContributions(self.heads, self.direction, self.prompts, self.pos)


@dataclass(frozen=True)
class DirectLogitAttribution(Record, axes={"part": "part_labels"}, also=("parts",), formerly="LogitAttribution"):
    """Direct logit attribution: the logit difference of two groups of tokens, by component (last position).

    The parts and the two constants sum to ``before_cap``; ``measured`` is what the model gives, which for a
    model with softcapped logits is another number (the cap is not linear, so no parts can sum to it).

    Attributes:
        components: contributions in logits, through the frozen final norm (its scale is each prompt's own).
        norm_bias: the final norm's bias, one number per prompt (0 for RMS norms).
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

    def _with_biases(self, parts: Float[Tensor, "part prompt"]) -> Float[Tensor, "more prompt"]:
        return torch.cat([parts, self.norm_bias[None], self.unembed_bias[None]])

    @property
    def values(self) -> Float[Tensor, "component prompt"]:
        """embed, attention and MLP of each layer, final norm's bias, unembedding's bias."""
        return self._with_biases(self.components.values)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the rows of ``values``."""
        return (*self.components.labels, *BIASES)

    @property
    def parts(self) -> Float[Tensor, "part prompt"]:
        """The finest rows: every head, bias and MLP."""
        return self._with_biases(self.components.parts)

    @property
    def part_labels(self) -> tuple[str, ...]:
        """Names of the rows of ``parts``."""
        return (*self.components.part_labels, *BIASES)

    @property
    def error(self) -> float:
        """Largest |sum of the parts - before_cap| over prompts, in logits."""
        return float((self.parts.sum(0) - self.before_cap).abs().max())

    def to_frame(self) -> pd.DataFrame:
        """One row per part: label, mean, low, high; largest magnitude first."""
        return _parts_frame(self.part_labels, self.parts)


def _parts_frame(labels: tuple[str, ...], parts: Float[Tensor, "part prompt"]) -> pd.DataFrame:
    rows = (
        {"label": label, **columns(mean_interval(x.tolist()), "mean")} for label, x in zip(labels, parts, strict=True)
    )
    return pd.DataFrame(rows).sort_values("mean", key=abs, ascending=False, ignore_index=True)


@dataclass(frozen=True)
class NeuronContributions(Record, axes={"prompt": "prompts", "neuron": "labels", "layer": "rest_layers"}):
    """Contributions of single MLP neurons along a direction; only the strongest are kept, by mean magnitude.

    Attributes:
        values: activation · (W_out r̂), through the post-norm where there is one.
        layers, neurons: where each row comes from.
        rest: the neurons not kept and the biases, by layer of ``rest_layers``; with ``values`` it sums to the MLP's
            row.
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


@dataclass(frozen=True)
class TopHeads(Record, formerly="HeadReport", renamed={"selection": "chosen_on", "report": "reported"}):
    """The top heads of a direction (paper Fig. 6a), chosen on some prompts and reported on others.

    Attributes:
        heads: (layer, head), highest mean over ``chosen_on`` first.
        chosen_on, reported: contributions on the prompts that chose the heads, and on others.
        contrast: contributions on prompts of the other kind (harmless), or None.
        p_values: two-sided, Benjamini-Hochberg adjusted over all heads, on the reported prompts.
        test: reported against contrast (Mann-Whitney), or against 0 (Wilcoxon) without a contrast.
        intervals: of each chosen head on the reported prompts.
    """

    heads: tuple[Head, ...]
    chosen_on: HeadContributions
    reported: HeadContributions
    contrast: HeadContributions | None
    p_values: Float[Tensor, "layer head"]
    test: str
    intervals: tuple[Interval, ...] = field(default=())

    @property
    def n_selection(self) -> int:
        """Number of prompts that chose the heads."""
        return len(self.chosen_on.prompts)

    @property
    def n_reported(self) -> int:
        """Number of prompts reported on; none of them chose."""
        return len(self.reported.prompts)

    @property
    def labels(self) -> tuple[str, ...]:
        """``L12H7`` of the chosen heads."""
        return tuple(head_label(*head) for head in self.heads)

    def ranked(self) -> tuple[Head, ...]:
        """Every head: the chosen ones, then the others by their mean on the reported prompts, strongest first."""
        sizes = self.reported.mean.abs()
        return (*self.heads, *(head for head in highest(sizes, sizes.numel()) if head not in self.heads))

    @property
    def share(self) -> float:
        """The chosen heads' share of what all heads with a positive mean write, on the reported prompts."""
        mean = self.reported.mean
        return float(sum(mean[layer, head] for layer, head in self.heads) / mean.clamp_min(0).sum())

    def to_frame(self) -> pd.DataFrame:
        """One row per chosen head: label, chosen_on, reported, low, high, contrast, p."""
        return pd.DataFrame(
            {
                "label": head_label(*head),
                "chosen_on": float(self.chosen_on.mean[head]),
                **columns(found, "reported"),
                "contrast": float("nan") if self.contrast is None else float(self.contrast.mean[head]),
                "p": float(self.p_values[head]),
            }
            for head, found in zip(self.heads, self.intervals, strict=True)
        )
