"""Interventions on the residual stream, as values: ``with model.hooks(Ablate(direction)): ...``"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..records.direction import Direction, Subspace
from ..tensors import orthonormal, project_out, unit
from .base import Hooks, Model, write_sites


@dataclass(frozen=True)
class Ablate:
    """Directional ablation: x <- x - r̂ r̂ᵀx at every write, all positions (paper section 2.4)."""

    direction: Direction

    def hooks(self, model: Model) -> Hooks:
        """One hook per write site."""
        model.check_direction(self.direction)
        exact = unit(self.direction.unit.double())  # float32 storage leaves 1e-8 of the component in float64

        def ablate(x: Tensor, hook: Any) -> Tensor:
            return project_out(x, exact)

        return [(name, ablate) for name in write_sites(model.n_layers)]


@dataclass(frozen=True)
class Add:
    """Activation addition: x <- x + coeff * r at resid_pre of one layer, all positions (paper section 2.4).

    Attributes:
        direction: its ``norm`` counts, so coeff 1 adds r itself; -1 subtracts it.
        coeff: multiple of r; the direction's own ``coeff`` if None.
        layer: where to add; the direction's own layer if None.
    """

    direction: Direction
    coeff: float | None = None
    layer: int | None = None

    def hooks(self, model: Model) -> Hooks:
        """One hook, at the layer's resid_pre."""
        model.check_direction(self.direction)
        layer = self.direction.layer if self.layer is None else self.layer
        coeff = self.direction.coeff if self.coeff is None else self.coeff
        vector = coeff * self.direction.vector

        def add(x: Tensor, hook: Any) -> Tensor:
            return (x.float() + vector.to(x.device)).to(x.dtype) if x.dtype.itemsize < 4 else x + vector.to(x)

        return [(f"blocks.{layer}.hook_resid_pre", add)]


@dataclass(frozen=True)
class _AblateRows:
    """``Ablate``, another direction in each part of the batch (see ``_by_candidate``)."""

    units: Float[Tensor, "row d_model"]

    def hooks(self, model: Model) -> Hooks:
        r = unit(self.units.double())[:, None].to(model.device)

        def ablate(x: Tensor, hook: Any) -> Tensor:
            return project_out(_by_candidate(x, len(r)), r).reshape(x.shape)

        return [(name, ablate) for name in write_sites(model.n_layers)]


@dataclass(frozen=True)
class _AddRows:
    """``Add``, another vector in each part of the batch."""

    vectors: Float[Tensor, "row d_model"]
    layer: int

    def hooks(self, model: Model) -> Hooks:
        def add(x: Tensor, hook: Any) -> Tensor:
            wide = _by_candidate(x, len(self.vectors)).to(torch.promote_types(x.dtype, torch.float32))
            return (wide + self.vectors[:, None].to(wide)).to(x.dtype).reshape(x.shape)

        return [(f"blocks.{self.layer}.hook_resid_pre", add)]


def _by_candidate(x: Float[Tensor, "batch pos d_model"], n: int) -> Float[Tensor, "n tokens d_model"]:
    """A batch that holds as many rows for each of ``n`` candidates, one candidate after another."""
    return x.reshape(n, -1, x.shape[-1])


@dataclass(frozen=True)
class AblateSubspace:
    """x <- x - Vᵀ V x at every write to the residual stream, all positions; V orthonormal."""

    subspace: Subspace

    def hooks(self, model: Model) -> Hooks:
        """One hook per write site."""
        model.check_direction(self.subspace.reference)
        vectors = orthonormal(self.subspace.vectors)

        def ablate(x: Tensor, hook: Any) -> Tensor:
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            v = vectors.to(wide)
            return (wide - (wide @ v.T) @ v).to(x.dtype)

        return [(name, ablate) for name in write_sites(model.n_layers)]
