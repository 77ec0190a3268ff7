"""Detectors of harmful requests: scores, ROC curves, false alarms."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from ..records.base import Record
from ..records.labels import index_of
from ..stats import Interval, Rate, columns, rate
from .statistics import Roc, roc

UNKNOWN = Interval(float("nan"), float("nan"), float("nan"), 0)
SCORES = ("last token", "instruction maximum", "both")


@dataclass(frozen=True)
class Detectors(Record, axes={"score": "scores", "prompt": "groups"}):
    """Harmful requests told from harmless ones by the projection on r̂, by layer.

    Attributes:
        values: score of every prompt, [score, site, prompt]; "both" is the sum of the two after standardizing on the
            plain harmless prompts.
        groups: group of each prompt, e.g. "harmful + adversarial suffix".
        harmful: which groups are harmful.
        site: where tables read: resid_pre of r̂'s layer, so that nothing is chosen on the prompts reported.
        scores: names of the scores.
    """

    values: Float[Tensor, "score site prompt"]
    groups: tuple[str, ...]
    harmful: tuple[str, ...]
    site: int
    scores: tuple[str, ...] = SCORES

    @property
    def group_names(self) -> tuple[str, ...]:
        """Groups in order of first appearance."""
        return tuple(dict.fromkeys(self.groups))

    def of(self, score: str, site: int, group: str) -> list[float]:
        """Scores of one group.

        Raises:
            LabelError: there is no such score or group.
        """
        index_of(self.group_names, group, "group", "a Detectors")
        row = self.values[index_of(self.scores, score, "score", "a Detectors"), site].tolist()
        return [v for v, g in zip(row, self.groups, strict=True) if g == group]

    def roc(self, score: str, site: int, group: str) -> Roc:
        """ROC of one harmful group against all harmless prompts together."""
        negative = [v for g in self.group_names if g not in self.harmful for v in self.of(score, site, g)]
        return roc(self.of(score, site, group), negative)

    def threshold(self, score: str, site: int, fpr: float = 0.05) -> float:
        """The threshold that lets ``fpr`` of the plain harmless prompts (the first harmless group) through."""
        first = next(g for g in self.group_names if g not in self.harmful)
        values = sorted(self.of(score, site, first))
        # The smallest value that at most a share of fpr lies above.
        return values[len(values) - 1 - int(fpr * len(values))]

    def flagged(self, score: str, site: int, group: str, fpr: float = 0.05) -> Rate:
        """Share of a group above the threshold: detections of a harmful group, false alarms of a harmless one."""
        limit = self.threshold(score, site, fpr)
        return rate([v > limit for v in self.of(score, site, group)])

    def to_frame(self, fpr: float = 0.05) -> pd.DataFrame:
        """One row per score and group, at ``site``: AUROC (harmful groups), share flagged, n."""
        rows = []
        for score in self.scores:
            for group in self.group_names:
                flagged = self.flagged(score, self.site, group, fpr)
                area = self.roc(score, self.site, group).auroc if group in self.harmful else UNKNOWN
                rows.append(
                    {
                        "score": score,
                        "site": self.site,
                        "group": group,
                        "harmful": group in self.harmful,
                        **columns(area, "auroc", "auroc_"),
                        **columns(flagged, "flagged", "flagged_"),
                        "n": flagged.n,
                    }
                )
        return pd.DataFrame(rows)

    def by_site(self) -> pd.DataFrame:
        """AUROC with its interval of every score, site and harmful group."""
        rows = (
            ({"score": score, "site": site, "group": group}, self.roc(score, site, group).auroc)
            for score in self.scores
            for site in range(self.values.shape[1])
            for group in self.harmful
        )
        return pd.DataFrame({**place, **columns(area, "auroc"), "n": area.n} for place, area in rows)

    def failures(self, fpr: float = 0.05, limit: float = 0.5) -> tuple[str, ...]:
        """Where each detector fails, in words: harmful groups of which less than ``limit`` is found, harmless ones of
        which more is flagged."""
        found = []
        for row in self.to_frame(fpr).to_dict("records"):
            share = row["flagged"]
            if row["harmful"] and share < limit:
                found.append(f"{row['score']} finds only {share:.0%} of {row['group']}")
            if not row["harmful"] and share > limit:
                found.append(f"{row['score']} flags {share:.0%} of {row['group']}")
        return tuple(found)
