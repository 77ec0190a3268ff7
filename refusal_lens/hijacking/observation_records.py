"""Results of one suffix: observations by condition, the split of each head's drop, token effects."""

from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.records import highest
from ..attribution.token_records import AttentionPatterns
from ..data.suffixes import Suffix
from ..records.base import Record
from ..records.labels import REGIONS, Head, head_label, index_of
from ..stats import Interval, Rate, benjamini_hochberg, columns, mean_interval, paired_p, rate
from .causal_records import CausalTests
from .curve_records import HeadCurves, PathCurves
from .grid_records import PatchingGrid, PathEffects
from .shift_records import AttentionShift


def departure_site(
    reference: Float[Tensor, "site prompt"], other: Float[Tensor, "site prompt"], alpha: float = 0.05
) -> int | None:
    """First site from which ``other`` stays below ``reference`` at every later site: paired tests by site,
    Benjamini-Hochberg adjusted over sites."""
    gaps = (reference - other).double().numpy()
    below = (benjamini_hochberg([paired_p(gap) for gap in gaps]) < alpha) & (gaps.mean(1) > 0)
    first = len(below) - int(below[::-1].cumprod().sum())  # that many sites at the end are all below
    return first if first < len(below) else None


@dataclass(frozen=True)
class Observation(Record, axes={"prompt": "prompts", "region": REGIONS, "top": "top_labels"}):
    """All measurements under one condition: the same prompts, each with its suffix (or none).

    Sites are resid_pre of every layer and last the final resid_post; values along r̂ are in residual-stream units.

    Attributes:
        condition: "plain", "suffix", "random", "shuffled", "harmless" ...
        suffixes: what is appended to each prompt.
        projection, cosine: of the last position with r̂.
        instruction_projection, instruction_cosine: the same at the instruction's last token.
        instruction_max: the largest projection over the instruction's tokens.
        heads: what each head writes along r̂ at the last position.
        by_region: the same by region of its source tokens, summed over the heads of a layer; regions sum to ``heads``.
        attn_bias, mlp, embed: the other writes along r̂; all writes below a site sum to its projection.
        attention: from each post-instruction position (the last is -1) to each region, by top head; sums to 1.
        attention_mean: the same of every head, mean over prompts.
        dominance: each layer's share of attention's write at the last position that comes from the suffix,
            <Y_suffix, Y> / |Y|², Y the sum over heads and sources.
        top_dominance: the same for the top heads' write together.
        responses: greedy replies; empty where none were generated.
        refused: the paper's judge's verdicts on them.
        threshold: prompts with a higher metric count as refused, where no replies were generated.
        top_heads: the heads of ``attention``.
    """

    condition: str
    prompts: tuple[str, ...]
    suffixes: tuple[str, ...]
    projection: Float[Tensor, "site prompt"]
    cosine: Float[Tensor, "site prompt"]
    instruction_projection: Float[Tensor, "site prompt"]
    instruction_cosine: Float[Tensor, "site prompt"]
    instruction_max: Float[Tensor, "site prompt"]
    heads: Float[Tensor, "layer head prompt"]
    by_region: Float[Tensor, "layer region prompt"]
    attn_bias: Float[Tensor, "layer prompt"]
    mlp: Float[Tensor, "layer prompt"]
    embed: Float[Tensor, "prompt"]
    attention: Float[Tensor, "top post prompt region"]
    attention_mean: Float[Tensor, "layer head post region"]
    dominance: Float[Tensor, "layer prompt"]
    top_dominance: Float[Tensor, "prompt"]
    metric: Float[Tensor, "prompt"]
    top_heads: tuple[Head, ...]
    responses: tuple[str, ...] = ()
    refused: tuple[bool, ...] = ()
    threshold: float = 0.0

    @property
    def n(self) -> int:
        """Number of prompts."""
        return len(self.prompts)

    @property
    def refusal_rate(self) -> Rate:
        """Share of replies with a refusal phrase; where none were generated, of prompts with metric > threshold."""
        return rate(self.refusals)

    @property
    def refusals(self) -> tuple[bool, ...]:
        """Of each prompt, whether it is refused: by its reply, or by its metric where no replies were generated."""
        return self.refused or tuple((self.metric > self.threshold).tolist())

    @property
    def top_labels(self) -> tuple[str, ...]:
        """``L12H7`` of the top heads."""
        return tuple(head_label(*head) for head in self.top_heads)

    def attention_to(self, region: str, post: int = -1) -> Float[Tensor, "top prompt"]:
        """Attention of the top heads from one post-instruction position to one region.

        Raises:
            LabelError: there is no such region.
        """
        return self.attention[:, post, :, index_of(REGIONS, region, "region", "a prompt")]


@dataclass(frozen=True)
class Split(Record, axes={"region": REGIONS}):
    """Each head's change between two conditions, split exactly over source tokens.

    A source token's share is weight times value. Its change is attributed to the weight (at the mean of both values)
    and to the value (at the mean of both weights), which add up to it; a token that one side lacks (the suffix
    against no suffix) changes in weight alone.

    Attributes:
        moved: before minus after, through attention weights, by head and prompt.
        changed: the same through values.
        drop_by_region: before minus after of what each region's tokens contribute, by head; sums to moved + changed.
    """

    moved: Float[Tensor, "layer head prompt"]
    changed: Float[Tensor, "layer head prompt"]
    drop_by_region: Float[Tensor, "layer head region prompt"]

    @property
    def drop(self) -> Float[Tensor, "layer head prompt"]:
        """The whole change of each head's contribution, before minus after."""
        return self.moved + self.changed


@dataclass(frozen=True)
class TokenEffects(Record, axes={"token": "tokens"}):
    """Effect of each token of a suffix.

    Attributes:
        tokens: text of the suffix's tokens.
        removed: change in the refusal metric when this token alone is left out, by prompt (positive: it carries
            the effect).
        written: what the top heads take from it along r̂ at the last position (negative: away from refusal).
    """

    tokens: tuple[str, ...]
    removed: Float[Tensor, "token prompt"]
    written: Float[Tensor, "token prompt"]

    def to_frame(self) -> pd.DataFrame:
        """One row per token: position, token, removed, low, high, written, n."""
        rows = []
        for i, token in enumerate(self.tokens):
            back, written = mean_interval(self.removed[i].tolist()), float(self.written[i].mean())
            rows.append({"position": i, "token": token, **columns(back, "removed"), "written": written, "n": back.n})
        return pd.DataFrame(rows)


@dataclass(frozen=True)
class SuffixResult(Record):
    """One suffix.

    Attributes:
        n_tokens: number of the suffix's tokens, after each prompt.
        suffixed, random, shuffled: the same prompts with it, with random tokens of equal length, with its own tokens
            in another order (None if not measured).
        from_plain, from_random: the split of each head's drop from the plain and from the random condition.
        p_heads: paired test of every head's contribution, random against suffix, BH-adjusted over heads.
        p_metric: paired test of the refusal metric, random against suffix; ``Investigation.adjusted_p`` adjusts it
            over suffixes.
        causal: the causal tests; None for a suffix that does not work (or if not measured).
        tokens: token forensics, or None likewise.
        shift: why the heads' attention moves to it from random tokens, or None likewise.
        curves: how many heads it needs, or None likewise.
        paths: what the largest compositions of ``shift`` do alone, or None likewise.
        path_curves: what they do together, or None likewise.
        grids: where it acts, cell by cell, if asked for.
        patterns: attention of one head on some prompts, each plain and then suffixed: of the top heads, the one whose
            attention to the suffix rises most above that to random tokens.
        notes: omissions, in words.
    """

    suffix: Suffix
    n_tokens: tuple[int, ...]
    suffixed: Observation
    random: Observation
    shuffled: Observation | None
    from_plain: Split
    from_random: Split
    p_heads: Float[Tensor, "layer head"]
    p_metric: float
    causal: CausalTests | None = None
    tokens: TokenEffects | None = None
    patterns: tuple[AttentionPatterns, ...] = ()
    shift: AttentionShift | None = None
    curves: HeadCurves | None = None
    paths: PathEffects | None = None
    path_curves: PathCurves | None = None
    grids: tuple[PatchingGrid, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def metric_drop(self) -> Interval:
        """Refusal metric with random tokens minus that with the suffix, paired by prompt."""
        return mean_interval((self.random.metric - self.suffixed.metric).tolist())

    @property
    def works(self) -> bool:
        """Whether it removes refusals that random tokens leave: the metric drops beyond its interval, and the
        refusal rates' intervals do not overlap."""
        rates = self.random.refusal_rate, self.suffixed.refusal_rate
        return self.metric_drop.low > 0 and rates[1].high < rates[0].low

    @property
    def strength(self) -> Interval:
        """Hijacking strength: the suffix's share (dominance) of the top heads' write at the last position."""
        return mean_interval(self.suffixed.top_dominance.tolist())

    @property
    def universality(self) -> Rate:
        """Share of the instructions, all refused without a suffix, that are not refused with it."""
        return rate([not refused for refused in self.suffixed.refusals])

    @property
    def attention_rise(self) -> Interval:
        """Attention of the top heads from the last position to the suffix, minus to random tokens (mean over heads)."""
        return mean_interval(self._rises().mean(0).tolist())

    def head_rises(self) -> tuple[Interval, ...]:
        """The same for each top head."""
        return tuple(mean_interval(row.tolist()) for row in self._rises())

    def _rises(self) -> Float[Tensor, "top prompt"]:
        return self.suffixed.attention_to("suffix") - self.random.attention_to("suffix")

    def parts_of_drop(self) -> tuple[Interval, Interval]:
        """The top heads' drop along r̂ from random tokens, as attention moved and values changed, which add up to it."""
        grids, heads = (self.from_random.moved, self.from_random.changed), self.suffixed.top_heads
        moved, changed = (mean_interval(torch.stack([grid[h] for h in heads]).sum(0).tolist()) for grid in grids)
        return moved, changed

    def strongest_rises(self, n: int = 5) -> tuple[tuple[str, float], ...]:
        """Of all heads of the model, those whose attention from the last position to the suffix rose most above that
        to random tokens: label, rise (mean over prompts)."""
        rise = (self.suffixed.attention_mean - self.random.attention_mean)[:, :, -1, REGIONS.index("suffix")]
        return tuple((head_label(*head), float(rise[head])) for head in highest(rise, n))

    def departure(self, alpha: float = 0.05) -> int | None:
        """First site from which the projection stays below random's at every later site; None if there is none."""
        return departure_site(self.random.projection, self.suffixed.projection, alpha)
