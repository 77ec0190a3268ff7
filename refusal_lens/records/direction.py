"""Directions and subspaces of the residual stream."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import DirectionError
from ..tensors import cosine, orthonormal, random_unit
from .base import Record


@dataclass(frozen=True)
class Direction(Record):
    """A direction of the residual stream (paper section 2.3).

    Ablation uses ``unit``; addition adds ``coeff * norm * unit`` at ``layer``'s resid_pre.

    Attributes:
        unit: r̂, shape [d_model], float32, length 1.
        norm: length of the mean difference r, in residual-stream units.
        pos: post-instruction position it came from; -1 is the last token of the prompt.
        layer: the layer whose resid_pre it came from.
        basis: basis of the residual stream it lives in (see ``HookedChatModel.basis``).
        model: fingerprint of the model it belongs to; "" for none (then no check is made).
        coeff: how many times r an addition adds by default.
        relaxed: what of the paper's rule was relaxed to choose it, "" if nothing.
        random: seed of the random direction that it is, the placebo of a found one; None for a found one.

    Example:
        >>> placebo = found.direction.random_control(seed=0)
        >>> abs(found.direction.cosine(placebo)) < 0.6, placebo.norm == found.direction.norm
        (True, True)
    """

    unit: Float[Tensor, "d_model"]
    norm: float
    pos: int
    layer: int
    basis: str = "raw"
    model: str = ""
    coeff: float = 1.0
    relaxed: str = ""
    random: int | None = None

    def __repr__(self) -> str:
        relaxed = f", relaxed: {self.relaxed}" if self.relaxed else ""
        return f"Direction(pos {self.pos}, layer {self.layer}, norm {self.norm:.3g}, d_model {len(self.unit)}{relaxed})"

    @property
    def vector(self) -> Float[Tensor, "d_model"]:
        """r itself, ``norm * unit``."""
        return self.norm * self.unit

    def random_control(self, seed: int) -> Direction:
        """A random direction of the same norm, layer and basis: this direction's placebo."""
        return dataclasses.replace(self, unit=random_unit(len(self.unit), seed), random=seed)

    def cosine(self, other: Direction) -> float:
        """Cosine with another direction of the same model and basis.

        Raises:
            DirectionError: if model, basis or size differ.
        """
        if (self.basis, self.model, len(self.unit)) != (other.basis, other.model, len(other.unit)):
            raise DirectionError(
                f"directions of different spaces can't be compared: model {self.model!r} basis {self.basis!r} "
                f"against model {other.model!r} basis {other.basis!r}"
            )
        return float(cosine(self.unit, other.unit))

    @property
    def label(self) -> str:
        """E.g. ``(-1, 12)``: position and layer; of a placebo with the seed of its random direction."""
        drawn = "" if self.random is None else f"random direction {self.random} for "
        return f"{drawn}({self.pos}, {self.layer})"


@dataclass(frozen=True)
class Subspace(Record):
    """Orthonormal directions, most important first.

    Attributes:
        vectors: [k, d_model], float64, rows orthonormal.
        kind: "pca", "repeated" or "random".
        reference: the direction whose position, layer, basis and model it shares.
    """

    vectors: Float[Tensor, "k d_model"]
    kind: str
    reference: Direction

    @classmethod
    def random(cls, reference: DirectionLike, k: int, seed: int) -> Subspace:
        """``k`` random orthonormal directions beside a direction: the placebo of a subspace."""
        reference = as_direction(reference)
        drawn = torch.randn(k, len(reference.unit), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return cls(orthonormal(drawn), "random", reference)

    def first(self, k: int) -> Subspace:
        """Its first ``k`` directions."""
        return dataclasses.replace(self, vectors=self.vectors[:k])

    def __len__(self) -> int:
        return len(self.vectors)


# Whatever is taken as a direction: a ``Direction``, or a result that has one.
DirectionLike = Any


def as_direction(value: Any) -> Direction:
    """The direction of a ``Direction``, of the result of ``find_direction`` or of a selection; a ``DirectionError`` for
    anything else."""
    found = value if isinstance(value, Direction) else getattr(value, "direction", None)
    if not isinstance(found, Direction):
        raise DirectionError(
            f"{type(value).__name__} is not a direction: give a Direction, the result of find_direction or, to an "
            "intervention, a Subspace or vectors [k, d_model]"
        )
    return found
