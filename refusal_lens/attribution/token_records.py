"""Results of attribution by token: where a contribution comes from, and how the direction moves."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..records.base import Record
from ..records.direction import Direction
from ..records.labels import REGIONS, Head, head_label, index_of
from ..stats import Interval, columns, mean_interval
from .records import HeadContributions


def inside(bounds: Int[Tensor, "prompt 2"], width: int) -> Bool[Tensor, "prompt width"]:
    """Which of ``width`` tokens lie in [start, stop)."""
    index = torch.arange(width)
    return (index >= bounds[:, :1]) & (index < bounds[:, 1:])


def _mean(values: Float[Tensor, "prompt"]) -> Interval:
    """Over the prompts that have a value."""
    return mean_interval([v for v in values.tolist() if v == v])


@dataclass(frozen=True)
class SourceContributions(
    Record, axes={"prompt": "prompts", "region": "regions"}, also=("by_region", "attention_by_region")
):
    """Contribution of each source token to the direction through each head, for one destination.

    Attributes:
        values: pattern[dest, src] · (v_src · W_O r̂); the sum over ``source`` is the head's contribution. Prompts end
            at source -1; sources before a prompt's first token are 0.
        pattern: the attention weights alone, same shape.
        bounds: [start, stop) of every region of every prompt on the source axis, in the order of ``regions``.
        tokens: text of every prompt's tokens, without padding.
        prompts: the requests with their suffixes.
        pos: the destination, counted from the end.
    """

    values: Float[Tensor, "layer head prompt source"]
    pattern: Float[Tensor, "layer head prompt source"]
    bounds: Int[Tensor, "prompt region 2"]
    tokens: tuple[tuple[str, ...], ...]
    prompts: tuple[str, ...]
    direction: Direction
    pos: int = -1
    regions: tuple[str, ...] = REGIONS

    def region_mask(self, name: str) -> Bool[Tensor, "prompt source"]:
        """Which sources belong to a region."""
        region = index_of(self.regions, name, "region", "SourceContributions")
        return inside(self.bounds[:, region], self.values.shape[-1])

    def by_region(self) -> Float[Tensor, "layer head prompt region"]:
        """Contributions summed over each region's tokens; the sum over regions is the head's contribution."""
        return self._sum(self.values)

    def attention_by_region(self) -> Float[Tensor, "layer head prompt region"]:
        """Attention from the destination to each region."""
        return self._sum(self.pattern)

    def to_frame(self, heads: Sequence[Head] | None = None) -> pd.DataFrame:
        """One row per head and region: mean contribution and mean attention over prompts.

        Args:
            heads: these heads; all if None.
        """
        values, attention = self.by_region().mean(2), self.attention_by_region().mean(2)
        rows = [
            (head_label(*head), region, float(values[(*head, i)]), float(attention[(*head, i)]), len(self.prompts))
            for head in (itertools.product(*map(range, values.shape[:2])) if heads is None else heads)
            for i, region in enumerate(self.regions)
        ]
        return pd.DataFrame(rows, columns=["head", "region", "along_direction", "attention", "n"])

    def _sum(self, x: Tensor) -> Tensor:
        return torch.stack([(x * self.region_mask(name)).sum(-1) for name in self.regions], -1)

    def head_contributions(self) -> HeadContributions:
        """Summed over sources."""
        return HeadContributions(self.values.sum(-1), self.direction, self.prompts, self.pos)

    def of_prompt(self, prompt: int, heads: Sequence[Head] | None = None) -> Float[Tensor, "source"]:
        """Contribution of each token of one prompt, summed over heads (all of them if None), without padding."""
        values = self.values[:, :, prompt, -len(self.tokens[prompt]) :]
        return values.sum((0, 1)) if heads is None else torch.stack([values[a, b] for a, b in heads]).sum(0)


@dataclass(frozen=True)
class AttentionPatterns(Record, axes={"head": "labels"}):
    """Full attention patterns of a few heads on one prompt.

    Attributes:
        values: attention weights.
        heads: (layer, head) of the first axis.
        tokens: text of the prompt's tokens.
        length: weight times the length of what the source's value writes; None where no direction was given.
        along: weight times what it writes along r̂; a row sums to the head's contribution at that token.
    """

    values: Float[Tensor, "head dest src"]
    heads: tuple[Head, ...]
    tokens: tuple[str, ...]
    prompt: str
    length: Float[Tensor, "head dest src"] | None = None
    along: Float[Tensor, "head dest src"] | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """``L12H7`` of each head."""
        return tuple(head_label(*head) for head in self.heads)


@dataclass(frozen=True)
class Propagation(Record, axes={"prompt": "prompts", "region": "regions"}):
    """Projection of the residual stream on r̂ by layer and token, and the writes of each layer there.

    ``projection[l + 1] = projection[l] + attn[l] + mlp[l]``. Prompts end at token -1; NaN before their first token.

    Attributes:
        projection: resid_pre of every layer, and last the final resid_post.
        attn, mlp: the layer's writes along r̂.
        bounds, tokens, prompts, direction, regions: as in ``SourceContributions``.
    """

    projection: Float[Tensor, "sites prompt token"]
    attn: Float[Tensor, "layer prompt token"]
    mlp: Float[Tensor, "layer prompt token"]
    bounds: Int[Tensor, "prompt region 2"]
    tokens: tuple[tuple[str, ...], ...]
    prompts: tuple[str, ...]
    direction: Direction
    post_labels: tuple[str, ...]
    regions: tuple[str, ...] = REGIONS

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that all prompts share: regions before the template's end, then each of its tokens ("⏎ (-1)").

        Regions that no prompt has (e.g. suffix) are left out.
        """
        present = (self.bounds[..., 1] > self.bounds[..., 0]).any(0).tolist()
        named = [name for name, here in zip(self.regions, present, strict=True) if here and name != "template_post"]
        return (*named, *(f"{label} ({i - len(self.post_labels)})" for i, label in enumerate(self.post_labels)))

    def to_frame(self) -> pd.DataFrame:
        """One row per site and column: mean projection on r̂ over the prompts that have the column."""
        grid = self.by_column()
        rows = [
            {"site": site, "column": column, **columns(found, "mean"), "n": found.n}
            for site in range(grid.shape[0])
            for j, column in enumerate(self.columns)
            if (found := _mean(grid[site, :, j])).n
        ]
        return pd.DataFrame(rows)

    def by_column(self, what: str = "projection") -> Float[Tensor, "rows prompt column"]:
        """``projection``, ``attn`` or ``mlp`` averaged over each column's tokens; NaN where a prompt has none."""
        x = getattr(self, what)
        n_post = len(self.post_labels)
        found = []
        for name in self.columns[: len(self.columns) - n_post]:
            mask = inside(self.bounds[:, self.regions.index(name)], x.shape[-1])
            found.append(torch.where(mask, x, 0).sum(-1) / torch.where(mask, 1.0, 0.0).sum(-1))
        return torch.stack([*found, *(x[..., i - n_post] for i in range(n_post))], -1)

    def movers(self, top: int = 10) -> pd.DataFrame:
        """The writes that moved the projection most, by mean magnitude: component, layer, column, mean, low, high."""
        rows = []
        for what in ("attn", "mlp"):
            grid = self.by_column(what)
            means = grid.nanmean(1)
            for flat in means.abs().nan_to_num(-1).flatten().topk(min(top, means.numel())).indices.tolist():
                layer, column = divmod(flat, means.shape[1])
                place = {"component": f"L{layer} {what}", "layer": layer, "column": self.columns[column]}
                rows.append({**place, **columns(_mean(grid[layer, :, column]), "mean")})
        return pd.DataFrame(rows).sort_values("mean", key=abs, ascending=False, ignore_index=True).head(top)


@dataclass(frozen=True)
class Lens(Record, axes={"vector": "vectors"}):
    """The tokens that vectors favour and disfavour most, through the final norm and the unembedding.

    Attributes:
        top: logits of the favoured tokens, highest first, above the mean over the vocabulary.
        bottom: those of the disfavoured ones, lowest first; of -v they are the favoured ones, with the sign turned.
        random: highest logit of each of some random directions: what a vector without meaning reaches.
        vectors: their names, the first random direction last.
        top_tokens, bottom_tokens: text by vector and rank.
    """

    top: Float[Tensor, "vector rank"]
    bottom: Float[Tensor, "vector rank"]
    random: Float[Tensor, "random"]
    vectors: tuple[str, ...]
    top_tokens: tuple[tuple[str, ...], ...]
    bottom_tokens: tuple[tuple[str, ...], ...]

    def to_frame(self) -> pd.DataFrame:
        """One row per vector and rank: the favoured token with its logit, and the disfavoured one."""
        columns = (self.top_tokens, self.top.tolist(), self.bottom_tokens, self.bottom.tolist())
        rows = [
            (vector, rank, *cells)
            for vector, *own in zip(self.vectors, *columns, strict=True)
            for rank, cells in enumerate(zip(*own, strict=True))
        ]
        return pd.DataFrame(rows, columns=["vector", "rank", "token", "logit", "disfavoured", "its_logit"])
