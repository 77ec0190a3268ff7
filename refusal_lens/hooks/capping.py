"""A ceiling on the residual stream's projection on a direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..errors import DirectionError, InterventionError
from ..records.direction import Subspace
from ..tensors import random_unit, unit, wide
from .base import HookIntervention, Hooks, Model, Scoped, Where, layers_of
from .interventions import Change, checked, named, subject_of, vectors_in


@dataclass(frozen=True)
class Cap(HookIntervention):
    """Capping: x <- x - max(0, r̂ᵀx - c) r̂ at resid_pre of every chosen layer; below the ceiling c nothing changes.

    A ``strength`` s removes the share s of the excess.

    Attributes:
        direction: a ``Direction`` (or a result that has one), or a vector [d_model] of any length.
        ceiling: c in units of the residual stream: one number, or one per layer of the model.
        along: unit vector [d_model] along which the excess is removed; None for r̂. The placebo has a random one.

    Raises:
        DirectionError: a direction of another model, basis or size, or a subspace.
        InterventionError: the numbers of ceilings and layers differ.

    Example:
        >>> with model.hooks(rl.hooks.Cap(found, 1.5, positions="prompt")):
        ...     reply = model.generate("How do I pick a lock?", 4)
    """

    direction: Any
    ceiling: float | Sequence[float]
    along: Float[Tensor, "d_model"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "direction", named(self.direction))
        if isinstance(self.direction, Subspace) or self.vector.ndim != 1:
            raise DirectionError("a ceiling belongs to one direction: give one, or one of the subspace's vectors")

    @property
    def vector(self) -> Float[Tensor, "*k d_model"]:
        """What the projection is on."""
        return vectors_in(self.direction)

    by_row = True

    def hooks(self, model: Model) -> Hooks:
        """One hook per chosen layer, at its resid_pre."""
        checked(self.direction, model)
        ceilings = list(self.ceiling) if isinstance(self.ceiling, Sequence) else [self.ceiling] * model.n_layers
        if len(ceilings) != model.n_layers:
            raise InterventionError(
                f"there are {len(ceilings)} ceilings and {model.name} has {model.n_layers} layers: give one number, "
                "or one per layer"
            )
        where = Where(model, self)
        return [
            (f"blocks.{layer}.hook_resid_pre", Scoped(self._change(ceilings[layer]), where))
            for layer in layers_of(self.layers, model.n_layers)
        ]

    def _change(self, ceiling: float) -> Change:
        exact = unit(self.vector.double())

        def cap(x: Tensor) -> Tensor:
            full = wide(x)
            r = exact.to(full)
            away = r if self.along is None else self.along.to(full)
            excess = (full @ r - ceiling).clamp_min(0)
            return (full - self.strength * excess[..., None] * away).to(x.dtype)

        return cap

    def placebo(self, seed: int) -> Cap:
        """As large a change wherever the projection is above the ceiling, along a random direction."""
        return replace(self, along=random_unit(self.vector.shape[-1], seed, self.vector.dtype))

    def _subject(self) -> str:
        at = "" if isinstance(self.ceiling, Sequence) else f" at {self.ceiling:g}"
        return subject_of(self.direction) + at
