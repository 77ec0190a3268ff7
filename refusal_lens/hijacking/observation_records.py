"""Results of one suffix: observations by condition, the split of each head's drop, token effects."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.token_records import AttentionPatterns
from ..data.suffixes import Suffix
from ..records.base import Record
from ..records.labels import REGIONS, Head, head_label, index_of
from ..stats import Interval, Rate, columns, mean_interval, rate
from .causal_records import CausalTests
from .statistics import departure_site


@dataclass(frozen=True)
class Observation(Record, axes={"prompt": "prompts", "region": REGIONS, "top": "top_labels"}):
    """All values read under one condition: the same prompts, each with its suffix (or none).

    Sites are resid_pre of every layer and last the final resid_post; values along r̂ are in residual-stream units.

    Attributes:
        condition: "plain", "suffix", "random", "shuffled", "harmless" ...
        prompts, suffixes: the requests, and the suffix appended to each.
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
        metric: refusal metric.
        responses: greedy replies; empty where none were generated.
        refused: the paper's judge on them.
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

    @property
    def n(self) -> int:
        """Number of prompts."""
        return len(self.prompts)

    @property
    def refusal_rate(self) -> Rate:
        """Share of replies with a refusal phrase; of prompts with metric > 0 where no replies were generated."""
        return rate(self.refused if self.refused else (self.metric > 0).tolist())

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

    def top(self) -> Float[Tensor, "prompt"]:
        """What the top heads write along r̂ together."""
        return torch.stack([self.heads[layer, head] for layer, head in self.top_heads]).sum(0)


@dataclass(frozen=True)
class Split(Record, axes={"region": REGIONS}):
    """Each head's change between two conditions, split exactly over source tokens.

    A source token's share is weight times value. Its change is put down to the weight (at the mean of both values)
    and to the value (at the mean of both weights), which add up to it; a token that one side does not have (the suffix
    against no suffix) changes in weight alone.

    Attributes:
        moved: before minus after, through attention weights, by head and prompt.
        changed: the same through values.
        drop_by_region: before minus after of what each region's tokens give, by head; sums to moved + changed.
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
        removed: change of the refusal metric when this token alone is left out, by prompt (positive: it carries
            the effect).
        written: what the top heads take from it along r̂ at the last position (negative: away from refusal).
    """

    tokens: tuple[str, ...]
    removed: Float[Tensor, "token prompt"]
    written: Float[Tensor, "token prompt"]

    def to_frame(self) -> pd.DataFrame:
        """One row per token: position, token, removed, low, high, written, n."""
        means = [mean_interval(row.tolist()) for row in self.removed]
        return pd.DataFrame(
            {"position": i, "token": token, **columns(x, "removed"), "written": float(self.written[i].mean()), "n": x.n}
            for i, (token, x) in enumerate(zip(self.tokens, means, strict=True))
        )


@dataclass(frozen=True)
class SuffixResult(Record):
    """One suffix.

    Attributes:
        suffix: the suffix.
        n_tokens: number of its tokens, after each prompt.
        suffixed, random, shuffled: the same prompts with it, with random tokens of equal length, with its own tokens
            in another order (None if not measured).
        from_plain, from_random: the split of each head's drop from the plain and from the random condition.
        p_heads: paired test of every head's contribution, random against suffix, BH-adjusted over heads.
        p_metric: paired test of the refusal metric, random against suffix; ``Investigation.adjusted_p`` adjusts it
            over suffixes.
        causal: the causal tests; None for a suffix that does not work (or if not measured).
        tokens: token forensics, or None likewise.
        patterns: attention of one head on some prompts, each plain and then suffixed: of the top heads, the one whose
            attention to the suffix rises most above that to random tokens.
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

    @property
    def metric_drop(self) -> Interval:
        """Refusal metric with random tokens minus with the suffix, paired by prompt."""
        return mean_interval((self.random.metric - self.suffixed.metric).tolist())

    @property
    def works(self) -> bool:
        """Whether it takes refusals away that random tokens leave: the metric drops beyond its interval, and the
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
        hits = self.suffixed.refused or (self.suffixed.metric > 0).tolist()
        return rate([not refused for refused in hits])

    @property
    def attention_rise(self) -> Interval:
        """Attention of the top heads from the last position to the suffix, minus to random tokens (mean over heads)."""
        rise = self.suffixed.attention_to("suffix") - self.random.attention_to("suffix")
        return mean_interval(rise.mean(0).tolist())

    def head_rises(self) -> tuple[Interval, ...]:
        """The same for each top head."""
        rise = self.suffixed.attention_to("suffix") - self.random.attention_to("suffix")
        return tuple(mean_interval(row.tolist()) for row in rise)

    def parts_of_drop(self) -> tuple[Interval, Interval]:
        """The top heads' drop along r̂ from random tokens, as attention moved and values changed, which add up to it."""
        heads = self.suffixed.top_heads

        def summed(grid: Tensor) -> Interval:
            return mean_interval(torch.stack([grid[h] for h in heads]).sum(0).tolist())

        return summed(self.from_random.moved), summed(self.from_random.changed)

    def strongest_rises(self, n: int = 5) -> tuple[tuple[str, float], ...]:
        """Of all heads of the model, those whose attention from the last position to the suffix rose most above that
        to random tokens: label, rise (mean over prompts)."""
        region = REGIONS.index("suffix")
        rise = (self.suffixed.attention_mean - self.random.attention_mean)[:, :, -1, region]
        best = rise.flatten().topk(min(n, rise.numel()))
        where = (divmod(i, rise.shape[1]) for i in best.indices.tolist())
        return tuple((head_label(*head), value) for head, value in zip(where, best.values.tolist(), strict=True))

    def departure(self, alpha: float = 0.05) -> int | None:
        """First site from which on the projection lies below random's at every later site (paired tests, BH-adjusted
        over sites); None if there is none."""
        return departure_site(self.random.projection, self.suffixed.projection, alpha)
