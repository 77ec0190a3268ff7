"""Detectors of harmful requests from the projection on r̂: what a defence could read, and where it fails."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .detector_records import SCORES, Detectors
from .observation_records import Observation


def _standardized(x: Tensor, plain: Tensor) -> Tensor:
    """In standard deviations from the mean on plain harmless prompts, each row by itself."""
    plain = plain.double()
    return (x - plain.mean(1, keepdim=True)) / plain.std(1, keepdim=True).clamp_min(1e-12)


def detectors(harmful: Mapping[str, Observation], harmless: Mapping[str, Observation], site: int) -> Detectors:
    """Scores of every prompt at every site.

    Args:
        harmful: group name -> observation, e.g. plain, with an adversarial, with a benign suffix.
        harmless: likewise; the first is the plain one, on which "both" is standardized and thresholds are set.
        site: where tables read (see ``Detectors``).
    """
    groups = {**harmful, **harmless}
    last = torch.cat([o.projection for o in groups.values()], 1).double()
    inside = torch.cat([o.instruction_max for o in groups.values()], 1).double()
    plain = next(iter(harmless.values()))
    both = _standardized(last, plain.projection) + _standardized(inside, plain.instruction_max)
    names = tuple(name for name, o in groups.items() for _ in range(o.n))
    return Detectors(torch.stack([last, inside, both]), names, tuple(harmful), site, SCORES)
