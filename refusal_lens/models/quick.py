"""Methods of TransformerLens's components without what they compute on every call and nobody sees."""

from collections.abc import Iterable
from inspect import signature
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from .writing_weights import core

NORM, BLOCK = "_hf_autograd_forward_with_hooks", "_filter_kwargs_for_forward"


def quick_methods(modules: Iterable[Any]) -> list[tuple[Any, str, MethodType]]:
    """(component, name of its method, what to call in its place during a pass)."""
    found = []
    for module in modules:
        if hasattr(type(module), NORM):
            found.append((module, NORM, MethodType(_norm_unless_read, module)))
        elif hasattr(type(module), BLOCK) and _takes_all(module):
            found.append((module, BLOCK, MethodType(_all_arguments, module)))
    return found


def _norm_unless_read(module: Any, x: Tensor) -> Tensor:
    """A bridge's norm, which computes ``hook_scale`` and ``hook_normalized`` only when a hook is there to see them.

    TransformerLens computes both beside the norm itself on every call, which costs as much as ablation at every write.
    The output is the wrapped norm's either way.
    """
    norm, points = module.original_component, (module.hook_scale, module.hook_normalized)
    seen = any(point._forward_pre_hooks or point._forward_hooks or point._backward_hooks for point in points)
    if seen or isinstance(norm, torch.nn.Identity):
        return type(module)._hf_autograd_forward_with_hooks(module, x)
    return norm(x).to(x.dtype)


def _takes_all(block: Any) -> bool:
    """Whether a block's own forward takes any keyword: TransformerLens, which asks on every call, then drops none."""
    return any(p.kind is p.VAR_KEYWORD for p in signature(core(block).forward).parameters.values())


def _all_arguments(block: Any, kwargs: dict[str, Any], given: int = 0) -> dict[str, Any]:
    return kwargs
