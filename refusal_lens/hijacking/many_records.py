"""Many suffixes beside each other: results of ``many_suffixes``."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats as scipy_stats
from torch import Tensor

from ..data.suffixes import Suffix
from ..records.base import Record
from ..records.direction import Direction
from ..records.labels import Head, head_label, shortened
from ..report.claims import NOT_SHOWN, grade_beyond, percent
from ..stats import Interval, Rate, benjamini_hochberg, columns, mean_interval, rank_correlation, rate
from .recurrence import Clusters, Overlap, clusters, overlap, top_sets
from .shift_records import PLAYERS, TARGETS, explained, shown_causes

BY = ("attention", "write")  # what ranks the heads of a suffix: attention gained by it, or write along r̂ lost


@dataclass(frozen=True)
class ManySuffixes(
    Record,
    axes={"suffix": "suffix_texts", "player": PLAYERS, "target": TARGETS},
    figures="refusal_lens.hijacking.many_figures",
):
    """Every suffix beside random tokens of its length, after the same prompts, all refused without a suffix.

    Attributes:
        direction: r̂.
        suffixes: in the order of the tensors.
        top_heads: the heads that write r̂ most, chosen on other prompts.
        metric, random_metric: refusal metric with the suffix and with random tokens.
        strength: the suffix's share of the top heads' write (dominance, ``SuffixResult.strength``).
        causes: change of attention from random tokens to the suffix, mean over the top heads, by cause.
        parts: the same of every head, mean over prompts.
        drops: fall of what each head writes along r̂ from random tokens to the suffix, mean over prompts.
        threshold: prompts with a higher metric count as refused.
        notes: what was left out, in words.
    """

    direction: Direction
    suffixes: tuple[Suffix, ...]
    top_heads: tuple[Head, ...]
    metric: Float[Tensor, "suffix prompt"]
    random_metric: Float[Tensor, "suffix prompt"]
    strength: Float[Tensor, "suffix prompt"]
    causes: Float[Tensor, "suffix player target prompt"]
    parts: Float[Tensor, "suffix player target layer head"]
    drops: Float[Tensor, "suffix layer head"]
    threshold: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def suffix_texts(self) -> tuple[str, ...]:
        """Text of each suffix."""
        return tuple(suffix.text for suffix in self.suffixes)

    @property
    def attacks(self) -> tuple[int, ...]:
        """Indices of the suffixes that are meant to stop refusals; the others are controls."""
        return tuple(i for i, suffix in enumerate(self.suffixes) if suffix.is_attack)

    @property
    def controls(self) -> tuple[int, ...]:
        """Indices of benign and random suffixes."""
        return tuple(i for i, suffix in enumerate(self.suffixes) if not suffix.is_attack)

    def strongest(self, n: int, controls: int = 2) -> tuple[Suffix, ...]:
        """The ``n`` attacks that lower the metric most below random tokens, then as many controls that do."""
        first = (sorted(some, key=lambda i: -self.metric_drop(i).mean) for some in (self.attacks, self.controls))
        return tuple(self.suffixes[i] for order, k in zip(first, (n, controls), strict=True) for i in order[:k])

    def metric_drop(self, i: int) -> Interval:
        """Refusal metric with random tokens minus that with suffix ``i``, paired by prompt."""
        return mean_interval((self.random_metric[i] - self.metric[i]).tolist())

    def stopped(self, i: int, random: bool = False) -> Rate:
        """Universality: share of the prompts that are not refused with suffix ``i``, or with its random tokens."""
        metric = self.random_metric if random else self.metric
        return rate((metric[i] <= self.threshold).tolist())

    def grade(self, i: int) -> str:
        """Grade of the refusals that are gone, beyond random tokens."""
        return grade_beyond(self.stopped(i), self.stopped(i, random=True))

    def sentence(self, i: int) -> str:
        """What suffix ``i`` does, graded, and which cause explains that the top heads attend to it."""
        both = percent(self.stopped(i)), percent(self.stopped(i, random=True))
        said = f"{both[0]} of the refusals are gone with it, {both[1]} with random tokens: {self.grade(i)}"
        if self.grade(i) != NOT_SHOWN:
            said += f"; {explained(self.causes[i, :, TARGETS.index('suffix')], 'the top heads')}"
        return said + "."

    def to_frame(self) -> pd.DataFrame:
        """One row per suffix: drop of the metric with interval and spread over prompts, prompts not refused with it and
        with random tokens, grade, dominance, the top heads' change of attention by cause, what explains it, n."""
        rows, target = [], TARGETS.index("suffix")
        for i, suffix in enumerate(self.suffixes):
            causes = self.causes[i, :, target]
            row: dict[str, object] = {"kind": suffix.kind, "suffix": suffix.text, "score": suffix.score}
            row |= columns(self.metric_drop(i), "metric_drop")
            row["spread"] = float((self.random_metric[i] - self.metric[i]).std())
            row |= columns(self.stopped(i), "not_refused", "not_refused_")
            row |= {"random": self.stopped(i, True).rate, "grade": self.grade(i)}
            row["dominance"] = float(self.strength[i].mean())
            row |= columns(mean_interval(causes.sum(0).tolist()), "attention", "attention_")
            row |= {player: float(causes[j].mean()) for j, player in enumerate(PLAYERS)}
            rows.append(row | {"explained by": ", ".join(shown_causes(causes)) or "none", "n": causes.shape[-1]})
        return pd.DataFrame(rows)

    def by_head(self, by: str = "attention") -> np.ndarray:
        """Value of every head that ranks it, [suffix, layer, head]: one of ``BY``."""
        return (self.parts[:, :, TARGETS.index("suffix")].sum(1) if by == "attention" else self.drops).double().numpy()

    def overlaps(self, by: str = "attention", top: int | None = None) -> dict[str, Overlap]:
        """How far the ``top`` heads of two suffixes (as many as there are top heads) are the same: of two attacks, two
        controls, one of each."""
        sets = top_sets(self.by_head(by), top or len(self.top_heads))
        attacks, controls = sets[list(self.attacks)], sets[list(self.controls)]
        pairs = {"attacks": (attacks, None), "controls": (controls, None), "attack and control": (attacks, controls)}
        return {name: overlap(*pair) for name, pair in pairs.items() if len(pair[0]) > (pair[1] is None)}

    def recurring(self, by: str = "attention", top: int | None = None) -> pd.DataFrame:
        """One row per head among the ``top`` of an attack: in how many attacks and controls, p of that many attacks by
        chance (binomial, heads drawn evenly; BH-adjusted over heads)."""
        top = top or len(self.top_heads)
        sets = top_sets(self.by_head(by), top)
        counts = [sets[list(some)].sum(0) for some in (self.attacks, self.controls)]
        n, share = len(self.attacks), top / counts[0].size
        p = benjamini_hochberg(scipy_stats.binom.sf(counts[0].ravel() - 1, n, share)).reshape(counts[0].shape)
        heads = np.nonzero(counts[0])
        values = {"attacks": counts[0][heads], "controls": counts[1][heads], "p": p[heads]}
        labels = [head_label(*head) for head in np.argwhere(counts[0]).tolist()]
        found = pd.DataFrame({"head": labels, **values, "of attacks": n, "of controls": len(self.controls)})
        return found.sort_values(["attacks", "head"], ascending=[False, True], ignore_index=True)

    def clusters(self) -> Clusters | None:
        """Suffixes by which heads turn to them and why: the causes of every head's change of attention on the suffix.

        None below four suffixes.
        """
        profiles = self.parts[:, :, TARGETS.index("suffix")].flatten(1).double().numpy()
        return clusters(profiles) if len(profiles) > 3 else None

    def cluster_frame(self) -> pd.DataFrame:
        """One row per cluster: attacks and controls in it, mean drop of the metric, causes, two typical suffixes."""
        found, rows = self.clusters(), list[dict[str, object]]()
        if found is None:
            return pd.DataFrame()
        for label in sorted(set(found.labels)):
            own = np.nonzero(found.labels == label)[0]
            typical = own[np.argsort(-found.cosine[np.ix_(own, own)].mean(1), kind="stable")][:2]
            causes = self.causes[own.tolist(), :, TARGETS.index("suffix")].mean((0, 2))
            kinds = [len({*own.tolist()} & {*some}) for some in (self.attacks, self.controls)]
            drop = float(np.mean([self.metric_drop(i).mean for i in own.tolist()]))
            row = {"cluster": int(label), "attacks": kinds[0], "controls": kinds[1], "metric_drop": drop}
            row |= dict(zip(PLAYERS, causes.tolist(), strict=True))
            rows.append(row | {"examples": " | ".join(shortened(self.suffixes[i].text.strip(), 50) for i in typical)})
        return pd.DataFrame(rows)

    def strength_against_universality(self) -> Interval:
        """Spearman's correlation over suffixes of the mean drop of the metric and the share of prompts not refused."""
        frame = self.to_frame()
        return rank_correlation(frame["metric_drop"].tolist(), frame["not_refused"].tolist())

    def beside_dominance(self) -> pd.DataFrame:
        """One row per measure: its Spearman correlation over suffixes with the dominance score, interval, n."""
        frame = self.to_frame()
        names = {"attention on the suffix": "attention", **{f"part of the {player}": player for player in PLAYERS}}
        names |= {
            "drop of the metric": "metric_drop",
            "prompts not refused": "not_refused",
            "the file's score": "score",
        }
        rows = []
        for name, column in names.items():
            some = frame[frame[column].notna()]
            found = rank_correlation(some[column].astype(float).tolist(), some["dominance"].tolist())
            if found.mean == found.mean:
                rows.append({"measure": name, **columns(found, "spearman"), "n": found.n})
        return pd.DataFrame(rows, columns=["measure", "spearman", "low", "high", "n"])

    def agreement(self) -> str:
        """Which parts of the split rank the suffixes as the dominance score does, in words."""
        frame = self.beside_dominance()
        frame = frame[frame["measure"].str.startswith(("attention", "part"))]
        said = [f"{row.measure} {row.spearman:.2f} [{row.low:.2f}, {row.high:.2f}]" for row in frame.itertuples()]
        agree = frame.loc[frame["low"] > 0, "measure"].tolist()
        against = frame.loc[frame["high"] < 0, "measure"].tolist()
        names = f"agrees with it by {', '.join(agree)}" if agree else "is not shown to agree with it by any part"
        names += f", and opposes it by {', '.join(against)}" if against else ""
        return (
            f"Over {len(self.suffixes)} suffixes the ranking {names} (Spearman with the dominance score of Ben-Tov et "
            f"al. 2025, {'; '.join(said) or 'not defined'})."
        )
