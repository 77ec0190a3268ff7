"""Interventions on the residual stream, as values: ``with model.hooks(Ablate(direction)): ...``"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

from .linalg import project_out, unit
from .records import Direction

if TYPE_CHECKING:
    from .backends import HookFn
    from .model import HookedChatModel

Hooks = list[tuple[str, "HookFn"]]


@runtime_checkable
class Intervention(Protocol):
    """Anything that says which functions to put at which hook points of a model."""

    def hooks(self, model: HookedChatModel) -> Hooks:
        """(hook name, function) pairs; functions return new tensors and never edit in place."""
        ...


def write_sites(n_layers: int) -> list[str]:
    """The hook points of every write into the residual stream: what enters block 0, then each layer's
    attn_out and mlp_out (after post-norms where there are any). Sets with resid_mid are not exact on a bridge."""
    return ["blocks.0.hook_resid_pre"] + [
        f"blocks.{layer}.{site}" for layer in range(n_layers) for site in ("hook_attn_out", "hook_mlp_out")
    ]


@dataclass(frozen=True)
class Ablate:
    """Directional ablation: x <- x - r̂ r̂ᵀx at every write, all positions (paper section 2.4)."""

    direction: Direction

    def hooks(self, model: HookedChatModel) -> Hooks:
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

    def hooks(self, model: HookedChatModel) -> Hooks:
        """One hook, at the layer's resid_pre."""
        model.check_direction(self.direction)
        layer = self.direction.layer if self.layer is None else self.layer
        coeff = self.direction.coeff if self.coeff is None else self.coeff
        vector = coeff * self.direction.vector

        def add(x: Tensor, hook: Any) -> Tensor:
            return (x.float() + vector.to(x.device)).to(x.dtype) if x.dtype.itemsize < 4 else x + vector.to(x)

        return [(f"blocks.{layer}.hook_resid_pre", add)]
