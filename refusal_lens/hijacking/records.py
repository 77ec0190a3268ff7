"""Results about suffixes inside a model: the whole investigation."""

from dataclasses import dataclass

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from ..data.suffixes import Suffix
from ..records.base import Record
from ..records.direction import Direction
from ..records.labels import REGIONS, Head, head_label, index_of
from ..refusal.records import RefusalTokens
from ..stats import Rate, benjamini_hochberg, columns, correlation, mean_interval, rate
from .detection import Detectors
from .mechanisms import mechanism
from .observation_records import Observation, SuffixResult


@dataclass(frozen=True)
class Investigation(Record, axes={"suffix": "suffix_texts"}, formerly="HijackingReport"):
    """Results of investigating suffixes: the heads, all conditions, the screen of every suffix, detectors.

    Attributes:
        top_heads: the heads that write r̂ most on ``head_prompts``; results are reported on other prompts.
        plain: the prompts without a suffix (all refused).
        harmless: harmless prompts, or None.
        results: one per suffix that was investigated.
        screened: refusal metric of every suffix and prompt, including suffixes not investigated.
        screened_strength: their strength (see ``SuffixResult.strength``).
        suffixes: all suffixes, in the order of ``screened``.
        detectors: detectors from the projection, or None.
        n_asked: number of prompts before leaving out those that the model does not refuse.
        notes: omissions, in words.
        post_labels: text of the post-instruction tokens.
    """

    model: str
    direction: Direction
    refusal_tokens: RefusalTokens
    top_heads: tuple[Head, ...]
    head_prompts: tuple[str, ...]
    plain: Observation
    harmless: Observation | None
    results: tuple[SuffixResult, ...]
    screened: Float[Tensor, "suffix prompt"]
    screened_strength: Float[Tensor, "suffix prompt"]
    suffixes: tuple[Suffix, ...]
    detectors: Detectors | None
    n_asked: int
    notes: tuple[str, ...] = ()
    post_labels: tuple[str, ...] = ()

    @property
    def head_labels(self) -> tuple[str, ...]:
        """``L12H7`` of the top heads."""
        return tuple(head_label(*head) for head in self.top_heads)

    @property
    def suffix_texts(self) -> tuple[str, ...]:
        """Text of each suffix, in the order of ``screened``."""
        return tuple(suffix.text for suffix in self.suffixes)

    @property
    def strongest(self) -> SuffixResult | None:
        """The suffix that lowers the refusal metric most below random tokens, attacks before benign ones."""
        attacks = [r for r in self.results if r.suffix.is_attack] or list(self.results)
        return max(attacks, key=lambda r: r.metric_drop.mean) if attacks else None

    def result(self, suffix: SuffixResult | Suffix | str | None = None) -> SuffixResult:
        """The result of one suffix.

        Args:
            suffix: the suffix or its text (white space around it does not count); the strongest if None.

        Raises:
            LabelError: it was not investigated.
        """
        if isinstance(suffix, SuffixResult):
            return suffix
        if suffix is None and self.strongest is not None:
            return self.strongest
        text = suffix.text if isinstance(suffix, Suffix) else suffix or ""
        texts = [r.suffix.text.strip() for r in self.results]
        return self.results[index_of(texts, text.strip(), "investigated suffix", "Investigation")]

    def to_frame(self) -> pd.DataFrame:
        """One row per suffix of the screen: metric with interval, strength, share of prompts with metric < 0, n."""
        rows = []
        for i, (suffix, universal) in enumerate(zip(self.suffixes, self.screened_universality(), strict=True)):
            metric, strength = mean_interval(self.screened[i].tolist()), float(self.screened_strength[i].mean())
            row = {"kind": suffix.kind, "suffix": suffix.text, **columns(metric, "refusal_metric")}
            rows.append(row | {"strength": strength, "below_0": universal.rate, "n": metric.n})
        return pd.DataFrame(rows)

    def results_frame(self) -> pd.DataFrame:
        """One row per suffix that was investigated: refusal rates, drop, p, strength, mechanism."""
        rows = []
        for result, p in zip(self.results, self.adjusted_p(), strict=True):
            suffix, site = result.suffix, result.departure()
            row = {"kind": suffix.kind, "suffix": suffix.text, "tokens": max(result.n_tokens)}
            seen = {"refused": result.suffixed, "refused_random": result.random, "refused_shuffled": result.shuffled}
            row |= {name: float("nan") if one is None else one.refusal_rate.rate for name, one in seen.items()}
            row |= columns(result.metric_drop, "metric_drop") | {"p": p, "strength": result.strength.mean}
            row |= {"attention_rise": result.attention_rise.mean, "departs_at": -1 if site is None else site}
            rows.append(row | {"mechanism": mechanism(result).name, "n": result.suffixed.n})
        return pd.DataFrame(rows)

    def adjusted_p(self) -> tuple[float, ...]:
        """``p_metric`` of each result, Benjamini-Hochberg adjusted over suffixes."""
        return tuple(benjamini_hochberg([r.p_metric for r in self.results]).tolist()) if self.results else ()

    def strength_against_universality(self) -> tuple[float, float]:
        """Spearman's rank correlation over all suffixes of strength and universality (by the metric's sign), with its
        p-value."""
        return correlation(self.screened_strength.mean(1).tolist(), [u.rate for u in self.screened_universality()])

    def screened_universality(self) -> tuple[Rate, ...]:
        """For every suffix, the share of the instructions whose refusal metric falls below 0."""
        return tuple(rate([value <= 0 for value in row]) for row in self.screened.tolist())

    def drop_parts(self, result: SuffixResult, site: int | None = None) -> pd.DataFrame:
        """The drop of the projection from plain to suffixed at one site, as parts that add up to it.

        One row per part: part, mean, low, high, n.

        Args:
            site: resid_pre of this layer (n_layers: the final resid_post); by default the layer of r̂.
        """
        site = self.direction.layer if site is None else site
        before, after = self.plain, result.suffixed
        regions = (before.by_region - after.by_region)[:site].sum(0)
        rows = {
            "embedding": before.embed - after.embed,
            **{f"attention: {region}": regions[i] for i, region in enumerate(REGIONS)},
            "attention bias": (before.attn_bias - after.attn_bias)[:site].sum(0),
            "MLPs": (before.mlp - after.mlp)[:site].sum(0),
            "total": before.projection[site] - after.projection[site],
        }
        found = {name: mean_interval(values.tolist()) for name, values in rows.items()}
        return pd.DataFrame({"part": name, **columns(i, "mean"), "n": i.n} for name, i in found.items())
