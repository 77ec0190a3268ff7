"""Weight orthogonalization: the direction projected out of every matrix that writes to the residual stream.

The paper's third intervention (section 2.4 and appendix E): W <- W - r̂ r̂ᵀW. The edit lives in memory, for
measurements, and is undone when the context is left; nothing here writes a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import DirectionError, InterventionError, ModelError
from ..records.direction import Direction
from ..tensors import project_out, unit
from .base import Intervention, Model, layers_of, write_sites
from .interventions import named

# Share of a write's length that may be left along r̂: rounding of the weights and of one matrix product.
LEFT_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 1e-2}
CHUNK = 1 << 22  # entries that are held in float32 at a time: the edit needs no second wide copy of a matrix


@dataclass(frozen=True)
class Orthogonalize(Intervention):
    """Weight edit after which every write to the residual stream is orthogonal to r̂ (paper section 2.4).

    It edits the embedding, the positional embedding, every attention and MLP output, experts, and all output
    biases. The original parameters are set aside, not overwritten, and put back on leaving, even after an
    exception: bit for bit what they were. Memory: one copy of the weights touched. A tied embedding is untied
    inside, so that the unembedding reads as before. ``model.hooks`` enters weight edits before hooks.

    Attributes:
        direction: a ``Direction`` (or a result that has one); its ``unit`` is used.
        allow_gap: edit even a model with norms after its writes, where the edit is not equivalent to ablation;
            ``exactness.orthogonalization_gap`` measures by how much.
        layers: edit the weights of these layers only; the embeddings count to layer 0.
        positions: None: weights act on every token.
        strength: the share of the weights' component that is removed.

    Raises:
        ModelError: norms after the writes, weights that can't be edited, or a write that the edit misses.
        DirectionError: a direction of another model or basis (all when it is applied).

    Example:
        >>> with model.hooks(rl.Orthogonalize(found)):
        ...     reply = model.generate("How do I pick a lock?", 4)
    """

    direction: Any
    allow_gap: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "direction", named(self.direction))
        if not isinstance(self.direction, Direction):
            raise DirectionError("orthogonalization takes one Direction; ablate vectors and subspaces with Ablate")
        if self.positions is not None:
            raise InterventionError(
                "weights act on every token: leave positions out, or use Ablate(direction, positions=...)"
            )

    @contextmanager
    def applied(self, model: Model) -> Iterator[Model]:
        """Context in which the model's weights are edited; other threads can't use the model inside."""
        model.check_direction(self.direction)
        layers, norm = layers_of(self.layers, model.n_layers), model.backend.norm_after_writes()
        if norm and not self.allow_gap:
            raise ModelError(
                f"{model.name} has a norm after its writes to the residual stream ({norm}), so no plain edit of "
                "weights is equivalent to ablation: use model.hooks(Ablate(direction)), or allow_gap=True to measure "
                "the edit anyway (orthogonalization_gap gives the difference)"
            )
        with model.hooks():  # takes the model's lock: another thread would see edited weights
            swapped: list[tuple[Any, nn.Parameter]] = []
            weights = [weight for weight in model.writing_weights() if _layer(weight.where) in layers]
            try:
                with torch.no_grad():
                    _swap(weights, unit(self.direction.unit.double()), self.strength, swapped)
                if not self.allow_gap and self.layers is None and self.strength == 1:
                    _check_nothing_left(model, self.direction)
                yield model
            finally:
                for weight, original in reversed(swapped):
                    weight.module._parameters[weight.name] = original

    def placebo(self, seed: int) -> Orthogonalize:
        """The same edit with a random direction."""
        return replace(self, direction=self.direction.random_control(seed))

    def _subject(self) -> str:
        return self.direction.label


def _layer(where: str) -> int:
    """Layer of a weight by its label; the embeddings count to layer 0."""
    part = where.split(".")
    return int(part[1]) if part[0] == "blocks" else 0


def _swap(
    weights: Sequence[Any], direction: Float[Tensor, "d_model"], share: float, swapped: list[tuple[Any, nn.Parameter]]
) -> None:
    """Put an edited copy in the place of each parameter, noting what was there before in ``swapped``."""
    edited: dict[int, nn.Parameter] = {}
    for weight in weights:
        original = weight.parameter
        # Layers that share one parameter share its edited copy too.
        if id(original) not in edited:
            new = _projected(original, direction.to(original.device), weight.axis, share)
            edited[id(original)] = nn.Parameter(new, requires_grad=original.requires_grad)
        swapped.append((weight, original))
        weight.module._parameters[weight.name] = edited[id(original)]


def _projected(parameter: Tensor, direction: Float[Tensor, "d_model"], axis: int, share: float = 1.0) -> Tensor:
    """W - share * r̂ r̂ᵀW along ``axis`` as a new tensor, a chunk at a time."""
    out = parameter.detach().clone()
    rows = out.movedim(axis, -1)
    if rows.ndim == 1:
        rows.copy_(project_out(rows, direction, share))
        return out
    step = max(1, CHUNK * len(rows) // rows.numel())
    for start in range(0, len(rows), step):
        rows[start : start + step] = project_out(rows[start : start + step], direction, share)
    return out


def _check_nothing_left(model: Model, direction: Direction) -> None:
    """Measure that the model's writes have no component along r̂: a matrix that was missed would show."""
    limit, r = LEFT_TOLERANCE.get(model.dtype, 1e-2), unit(direction.unit.double())
    for name, x in model.cache(["Hello there, how are you?"], write_sites(model.n_layers)).items():
        wide = x.double().cpu()
        left = float(((wide @ r.cpu()).abs() / wide.norm(dim=-1).clamp_min(1e-30)).max())
        if not left <= limit:  # also true for NaN
            raise ModelError(
                f"{model.name}: with edited weights {name} still has {left:.2g} of its length along the direction "
                f"(limit {limit:g}): some weight that writes there is not among those known, or an active hook writes "
                "there; use model.hooks(Ablate(direction)) instead"
            )
