"""Detectors of harmful requests from the projection on r̂: what a defence could read, and where it fails."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..records.base import Record
from ..records.labels import index_of
from ..stats import Interval, Rate, auroc, columns, rate, threshold_at
from .observation_records import Observation

SCORES = ("last token", "instruction maximum", "both")


class Roc(NamedTuple):
    """How well a score tells positives from negatives.

    Attributes:
        fpr, tpr: the curve, from (0, 0) to (1, 1).
        auroc: area under it, with its 95% interval (DeLong).
    """

    fpr: list[float]
    tpr: list[float]
    auroc: Interval


def roc(positive: Sequence[float], negative: Sequence[float]) -> Roc:
    """ROC curve of a score that should be higher for ``positive``; ties count half."""
    thresholds = np.unique([*positive, *negative])[::-1]
    fpr, tpr = ([0.0, *(np.asarray(x)[None] >= thresholds[:, None]).mean(1).tolist()] for x in (negative, positive))
    return Roc(fpr, tpr, auroc(positive, negative))


@dataclass(frozen=True)
class Detectors(Record, axes={"score": "scores", "prompt": "groups"}):
    """Separation of harmful from harmless requests by the projection on r̂, by layer.

    Attributes:
        values: score of every prompt, [score, site, prompt]; "both" is the sum of the two after standardizing on the
            plain harmless prompts.
        groups: group of each prompt, e.g. "harmful + adversarial suffix".
        harmful: which groups are harmful.
        site: the site of the tables: resid_pre of r̂'s layer, so that nothing is chosen on the prompts reported.
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
        index_of(self.group_names, group, "group", "Detectors")
        row = self.values[index_of(self.scores, score, "score", "Detectors"), site].tolist()
        return [v for v, g in zip(row, self.groups, strict=True) if g == group]

    def roc(self, score: str, site: int, group: str) -> Roc:
        """ROC of one harmful group against all harmless prompts together."""
        negative = [v for g in self.group_names if g not in self.harmful for v in self.of(score, site, g)]
        return roc(self.of(score, site, group), negative)

    def threshold(self, score: str, site: int, fpr: float = 0.05) -> float:
        """The threshold that flags at most ``fpr`` of the plain harmless prompts (the first harmless group)."""
        first = next(g for g in self.group_names if g not in self.harmful)
        return threshold_at(self.of(score, site, first), fpr)

    def flagged(self, score: str, site: int, group: str, fpr: float = 0.05) -> Rate:
        """Share of a group above the threshold: true positives in a harmful group, false ones in a harmless group."""
        limit = self.threshold(score, site, fpr)
        return rate([v > limit for v in self.of(score, site, group)])

    def to_frame(self, fpr: float = 0.05) -> pd.DataFrame:
        """One row per score and group, at ``site``: AUROC (harmful groups), share flagged, n."""
        rows = []
        for score, group in itertools.product(self.scores, self.group_names):
            flagged, harmful = self.flagged(score, self.site, group, fpr), group in self.harmful
            area = self.roc(score, self.site, group).auroc if harmful else auroc((), ())
            place = {"score": score, "site": self.site, "group": group, "harmful": harmful}
            intervals = {**columns(area, "auroc", "auroc_"), **columns(flagged, "flagged", "flagged_")}
            rows.append({**place, **intervals, "n": flagged.n})
        return pd.DataFrame(rows)

    def by_site(self) -> pd.DataFrame:
        """AUROC with its interval of every score, site and harmful group."""
        rows = []
        for score, site, group in itertools.product(self.scores, range(self.values.shape[1]), self.harmful):
            area = self.roc(score, site, group).auroc
            rows.append({"score": score, "site": site, "group": group, **columns(area, "auroc"), "n": area.n})
        return pd.DataFrame(rows)

    def failures(self, fpr: float = 0.05, limit: float = 0.5) -> tuple[str, ...]:
        """Where each detector fails, in words: harmful groups of which less than ``limit`` is flagged, harmless ones of
        which more is."""
        found = []
        for row in self.to_frame(fpr).to_dict("records"):
            share = row["flagged"]
            if row["harmful"] and share < limit:
                found.append(f"{row['score']} finds only {share:.0%} of {row['group']}")
            if not row["harmful"] and share > limit:
                found.append(f"{row['score']} flags {share:.0%} of {row['group']}")
        return tuple(found)


def _standardized(x: Tensor, plain: Tensor) -> Tensor:
    """In standard deviations from the mean on plain harmless prompts, each row by itself."""
    plain = plain.double()
    return (x - plain.mean(1, keepdim=True)) / plain.std(1, keepdim=True).clamp_min(1e-12)


def detectors(harmful: Mapping[str, Observation], harmless: Mapping[str, Observation], site: int) -> Detectors:
    """Score every prompt at every site.

    Args:
        harmful: group name -> observation, e.g. plain, with an adversarial, with a benign suffix.
        harmless: likewise; the first is the plain one, on which "both" is standardized and thresholds are set.
        site: the site of the tables (see ``Detectors``).
    """
    groups = {**harmful, **harmless}
    last = torch.cat([o.projection for o in groups.values()], 1).double()
    inside = torch.cat([o.instruction_max for o in groups.values()], 1).double()
    plain = next(iter(harmless.values()))
    both = _standardized(last, plain.projection) + _standardized(inside, plain.instruction_max)
    names = tuple(name for name, o in groups.items() for _ in range(o.n))
    return Detectors(torch.stack([last, inside, both]), names, tuple(harmful), site, SCORES)
