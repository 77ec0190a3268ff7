"""Whether a model is as it should be: no hook left on it, no weight or activation that is NaN or infinite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError


def active_hooks(tl: Any) -> tuple[str, ...]:
    """Hook points of a TransformerLens model that have a function on them, one name each."""
    found = {id(point): name for name, point in tl.hook_dict.items() if point.fwd_hooks or point.bwd_hooks}
    return tuple(found.values())


def check_unhooked(tl: Any, name: str) -> None:
    """Refuse a model that someone else's hooks change: a context left open, or hooks added and forgotten.

    Raises:
        ModelError: naming the hook points.
    """
    if names := active_hooks(tl):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ModelError(
            f"{name} has hooks on {', '.join(names[:3])}{more}, which would change every result: leave the "
            "`with model.hooks(...)` that is still open, or call model.tl.reset_hooks()"
        )


@torch.no_grad()
def check_weights(module: Any, name: str) -> None:
    """Refuse NaN and infinite weights.

    Raises:
        ModelError: naming the first such parameter, by the checkpoint's own names.
    """
    for parameter, weight in module.named_parameters():
        if not weight.is_floating_point() or weight.is_meta:
            continue
        # One pass without a mask of the weight's size: a sum is finite only if (all but always) every term is.
        total = weight.sum(dtype=torch.float64 if weight.dtype == torch.float64 else torch.float32)
        if not torch.isfinite(total) and (bad := int((~torch.isfinite(weight)).sum())):
            raise ModelError(
                f"{name}: {bad} of {weight.numel()} entries of {parameter} are NaN or infinite; the checkpoint is "
                "damaged, or was converted to a dtype too small for it"
            )


def check_activations(model: str, cached: Mapping[str, Tensor]) -> None:
    """Refuse NaN and infinite activations.

    Raises:
        ModelError: naming the first such hook point, in the order given.
    """
    for name, value in cached.items():
        if not torch.isfinite(value).all():
            raise ModelError(
                f"{model}: {name} holds NaN or infinite values; load the model in a wider dtype "
                "(dtype='bfloat16' or 'float32')"
            )
