"""Projections of prompts on the direction of harmfulness and on that of refusal."""

from dataclasses import dataclass

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from ..records.base import Record
from ..records.direction import Direction
from ..stats import Interval, auroc, mean_interval

READINGS = ("harm", "refusal", "random")
ASKED = "says it is harmful"  # the column of effect matrices for the question that inverts refusal


@dataclass(frozen=True)
class HarmMap(Record, axes={"reading": READINGS}):
    """Projections of test prompts on two directions: harmfulness, at the end of the user's turn, and refusal.

    Attributes:
        refusal: the direction of refusal, read at its own position and layer.
        harm: the difference in means at the request's last token, at the layer that separates harmful from harmless
            validation prompts best; read at the last token of the user's turn, the suffix's if there is one.
        cosines: between the two differences in means (request's last token, refusal's position), by layer.
        validation: AUROC of the harm direction of each layer on validation prompts.
        sets: set of each point (a prompt in one set): "harmful", "harmless", or the name of a suffix; in prompt order.
        refused: whether the prompt of each point is refused: in its reply where that was given, else by the refusal
            metric.
        projections: on harm, on refusal, and on a random direction at the place of harm; residual-stream units.
    """

    refusal: Direction
    harm: Direction
    cosines: Float[Tensor, "layer"]
    validation: tuple[Interval, ...]
    sets: tuple[str, ...]
    refused: tuple[bool, ...]
    projections: Float[Tensor, "reading point"]

    def values(self, reading: str, name: str, refused: bool | None = None) -> list[float]:
        """Projections of a set's points on one of ``READINGS``, of the refused or the answered ones alone if asked."""
        row = self.projections[READINGS.index(reading)].tolist()
        points = zip(row, self.sets, self.refused, strict=True)
        return [x for x, own, flag in points if own == name and refused in (None, flag)]

    def separation(self, reading: str, refused: bool | None = None) -> Interval:
        """AUROC of harmful against harmless prompts, or, within the harmful ones, of refused against answered."""
        if refused is None:
            return auroc(self.values(reading, "harmful"), self.values(reading, "harmless"))
        return auroc(self.values(reading, "harmful", True), self.values(reading, "harmful", False))

    def shift(self, reading: str, name: str, control: str) -> Interval:
        """Mean change from one set of the harmful prompts to another, paired by prompt."""
        pairs = zip(self.values(reading, name), self.values(reading, control), strict=True)
        return mean_interval([x - y for x, y in pairs])

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Names of the suffixes."""
        return tuple(name for name in dict.fromkeys(self.sets) if name not in ("harmful", "harmless"))

    def summary(self) -> tuple[str, ...]:
        """What the two directions separate, and what suffixes move, in words."""
        cosine = float(self.cosines[self.refusal.layer])
        said = [
            f"Cosine of the two differences in means at layer {self.refusal.layer}: {cosine:.2f}. AUROC of harmful "
            f"against harmless prompts: {', '.join(f'{reading} {self.separation(reading)}' for reading in READINGS)}."
        ]
        refused, answered = (len(self.values("harm", "harmful", flag)) for flag in (True, False))
        if min(refused, answered) < 5:
            said.append(f"Of the harmful prompts {refused} are refused, {answered} answered: too few to compare them.")
        else:
            areas = ", ".join(f"{reading} {self.separation(reading, True)}" for reading in READINGS)
            said.append(f"Within the harmful prompts, {refused} refused against {answered} answered: AUROC {areas}.")
        for name in self.suffixes:
            moved = [f"{reading} {self.shift(reading, name, 'harmful')}" for reading in READINGS]
            said.append(f"Mean change with {name!r} after the request: {', '.join(moved)}.")
        return tuple(said)

    def to_frame(self) -> pd.DataFrame:
        """One row per point."""
        columns = dict(zip(READINGS, self.projections.tolist(), strict=True))
        return pd.DataFrame({"set": self.sets, "refused": self.refused, **columns})
