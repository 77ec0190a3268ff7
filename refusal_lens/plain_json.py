"""A record as plain JSON, for summaries and logs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any


def to_json(value: Any) -> Any:
    """A plain-JSON view of a record (no tensors)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
