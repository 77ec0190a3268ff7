"""A device that is not the CPU, on the CPU: its tensors refuse to meet others, as a GPU's do.

What reads a GPU's tensor without moving it, or mixes both devices, fails here as it would there. Rounding, memory and
speed are the CPU's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "other"
_setup_privateuseone_for_python_backend(NAME)
aten = torch.ops.aten
# A GPU's tensor takes indices from the CPU, and copies go either way.
BOTH = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
COPIES = {aten.copy_.default, aten._to_copy.default}


class Elsewhere(torch.Tensor):
    """A tensor on the other device; ``inner`` holds its numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Elsewhere:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=f"{NAME}:0"
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(func, args, kwargs or {})

    def numpy(self, *_: Any, **__: Any) -> Any:
        """As a GPU's."""
        raise TypeError("can't convert other:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    def tolist(self) -> Any:
        """Copied first, as there."""
        return self.inner.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.inner!r})"


def _run(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """On the CPU; an error where the operation is given tensors of both devices."""
    tensors = [x for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)]
    here = [x for x in tensors if not isinstance(x, Elsewhere) and x.ndim]
    if func in BOTH and isinstance(args[0], Elsewhere):
        here = []
    if here and func not in COPIES and len(here) < len(tensors):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, {NAME} and cpu were given")
    to = next((x for x in (*args, *kwargs.values()) if isinstance(x, torch.device)), None)
    out = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if func._schema.is_mutable:
        given = {a.name: x for a, x in zip(func._schema.arguments, args, strict=False)} | kwargs
        written = [given[a.name] for a in func._schema.arguments if a.is_write and a.name in given]
        return written[0] if isinstance(out, torch.Tensor) else out
    if to is not None and to.type == "cpu":
        return out
    return tree_map(lambda x: Elsewhere(x) if isinstance(x, torch.Tensor) else x, out)


def _inner(x: Any) -> Any:
    if isinstance(x, torch.device) and x.type == NAME:
        return torch.device("cpu")
    return x.inner if isinstance(x, Elsewhere) else x


_LIBRARY = torch.library.Library("_", "IMPL")  # what has no tensor of the device yet: torch.zeros(..., device="other")
_LIBRARY.fallback(lambda func, *args, **kwargs: _run(func, args, kwargs), "PrivateUse1")
