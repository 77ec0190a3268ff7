"""Weight orthogonalization: the direction projected out of every matrix that writes to the residual stream.

The paper's third intervention (section 2.4 and appendix E): W <- W - r̂ r̂ᵀW. The edit lives in memory, for
measuring, and is gone when the context is left; nothing here writes a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import ModelError
from ..records.direction import Direction
from ..tensors import project_out, unit
from .base import Model, write_sites

# Share of a write's length that may be left along r̂: rounding of the weights and of one matrix product.
LEFT_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 1e-2}
CHUNK = 1 << 22  # entries that are held in float32 at a time: the edit needs no second wide copy of a matrix


@dataclass(frozen=True)
class Orthogonalize:
    """The weight edit as a value, for tables of conditions: ``with Orthogonalize(direction).applied(model): ...``

    Attributes:
        direction: what to project out of the weights.
        allow_gap: edit also where no edit is equivalent to ablation (see ``orthogonalized``).
    """

    direction: Direction
    allow_gap: bool = False

    @contextmanager
    def applied(self, model: Model) -> Iterator[Model]:
        """``orthogonalized`` with this value's settings."""
        with orthogonalized(model, self.direction, allow_gap=self.allow_gap):
            yield model


@contextmanager
def orthogonalized(model: Model, direction: Direction, *, allow_gap: bool = False) -> Iterator[Model]:
    """Inside, every write to the residual stream is orthogonal to r̂ by its weights (paper section 2.4).

    Edited are the embedding, the positional embedding, every attention and MLP output, experts, and all output
    biases. The original parameters are set aside, not overwritten, and put back on leaving, also after an
    exception: bit for bit what they were. Memory: one copy of the weights touched. A tied embedding is untied
    inside, so that the unembedding reads as before. Contexts nest; enter it outside of ``model.hooks``.

    Args:
        model: the model; other threads can't use it inside.
        direction: its ``unit`` counts.
        allow_gap: edit also a model with norms after its writes, where the edit is not equivalent to ablation;
            ``orthogonalization_gap`` measures by how much.

    Raises:
        ModelError: norms after the writes, weights that can't be edited, or a write that the edit misses.
        DirectionError: a direction of another model or basis.
    """
    model.check_direction(direction)
    norms = post_norm_layers(model)
    if norms and not allow_gap:
        raise ModelError(
            f"{model.name} has a norm after its writes to the residual stream (in {len(norms)} of {model.n_layers} "
            "layers), so no plain edit of weights is equivalent to ablation: use model.hooks(Ablate(direction)), or "
            "allow_gap=True to measure the edit all the same (orthogonalization_gap gives the difference)"
        )
    with model.hooks():  # takes the model's lock: another thread would see edited weights
        swapped: list[tuple[Any, nn.Parameter]] = []
        try:
            with torch.no_grad():
                _swap(model.writing_weights(), unit(direction.unit.double()), swapped)
            if not allow_gap:
                _check_nothing_left(model, direction)
            yield model
        finally:
            for weight, original in reversed(swapped):
                weight.module._parameters[weight.name] = original


def post_norm_layers(model: Model) -> list[int]:
    """Layers with a norm between a sublayer's output and the residual stream (Gemma 2 and 3, OLMo 2)."""
    return [n for n in range(model.n_layers) if any(model.backend.post_norm(n, part) for part in ("attn", "mlp"))]


def _swap(
    weights: Sequence[Any],
    direction: Float[Tensor, "d_model"],
    swapped: list[tuple[Any, nn.Parameter]],
) -> None:
    """Put an edited copy in the place of each parameter, noting what was there before in ``swapped``."""
    edited: dict[int, nn.Parameter] = {}
    for weight in weights:
        original = weight.parameter
        # Layers that share one parameter share its edited copy too.
        if id(original) not in edited:
            new = _projected(original, direction.to(original.device), weight.axis)
            edited[id(original)] = nn.Parameter(new, requires_grad=original.requires_grad)
        swapped.append((weight, original))
        weight.module._parameters[weight.name] = edited[id(original)]


def _projected(parameter: Tensor, direction: Float[Tensor, "d_model"], axis: int) -> Tensor:
    """W - r̂ r̂ᵀW along ``axis`` as a new tensor, a chunk at a time."""
    out = parameter.detach().clone()
    rows = out.movedim(axis, -1)
    if rows.ndim == 1:
        rows.copy_(project_out(rows, direction))
        return out
    step = max(1, CHUNK * len(rows) // rows.numel())
    for start in range(0, len(rows), step):
        rows[start : start + step] = project_out(rows[start : start + step], direction)
    return out


def _check_nothing_left(model: Model, direction: Direction) -> None:
    """Measure that what the model writes has no component along r̂: a matrix that was missed would show.

    Raises:
        ModelError: naming the write.
    """
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
