"""Results of ``certify``: measured identities."""

import math
from dataclasses import dataclass

import pandas as pd

from ..records.base import Record


@dataclass(frozen=True)
class Identity(Record):
    """One identity on one model.

    Attributes:
        name: what should equal what.
        absolute, relative: largest error in the model's own dtype; relative to ``scale``.
        tolerance: limit of ``relative``.
        absolute64, relative64, tolerance64: the same in float64, NaN where not measured.
        passed: whether every measured error is within its limit.
        scale: what the relative error is relative to.
        note: why it fails, or why it was not measured; "" if there is nothing to say.
    """

    name: str
    absolute: float
    relative: float
    tolerance: float
    absolute64: float
    relative64: float
    tolerance64: float
    passed: bool
    scale: str
    note: str

    @property
    def result(self) -> str:
        """PASS, FAIL, or n/a where this model has nothing to measure."""
        if not self.passed:
            return "FAIL"
        return "n/a" if math.isnan(self.absolute) else "PASS"


@dataclass(frozen=True)
class Certificate(Record):
    """The table of identities of one model."""

    model: str
    fingerprint: str
    backend: str
    dtype: str
    identities: tuple[Identity, ...]

    @property
    def passed(self) -> bool:
        """Whether all identities hold."""
        return all(identity.passed for identity in self.identities)

    def to_frame(self) -> pd.DataFrame:
        """One row per identity: identity, PASS or FAIL, the errors and limits, note."""
        return pd.DataFrame(
            {"identity": i.name, "result": i.result}
            | {f"max abs ({self.dtype})": i.absolute, f"max rel ({self.dtype})": i.relative, "limit": i.tolerance}
            | {"max abs (float64)": i.absolute64, "max rel (float64)": i.relative64, "limit (float64)": i.tolerance64}
            | {"relative to": i.scale, "note": i.note}
            for i in self.identities
        )
