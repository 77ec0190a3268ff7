"""A device that is not the CPU, on the CPU: tensors that say they are on "cuda" and refuse others, as a GPU's do.

What reads a GPU tensor without moving it, or mixes both devices, fails here as it would there. Rounding, memory and speed
are the CPU's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map

torch._C._ensureCUDADeviceGuardSet()  # as FakeTensorMode does where torch was built without CUDA
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
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device="cuda"
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)]
        here = [x for x in tensors if not isinstance(x, Elsewhere) and x.ndim]
        if func in BOTH:
            here = here if not isinstance(args[0], Elsewhere) else []
        if here and func not in COPIES and len(here) < len(tensors):
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, cuda and cpu were given")
        device = kwargs.get("device")
        if device is not None:
            kwargs["device"] = torch.device("cpu")
        out = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        if func._schema.is_mutable:
            return args[0] if isinstance(out, torch.Tensor) else out
        if device is not None and torch.device(device).type == "cpu":
            return out
        return tree_map(lambda x: Elsewhere(x) if isinstance(x, torch.Tensor) else x, out)

    def numpy(self, *_: Any, **__: Any) -> Any:
        """As a GPU's."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    def tolist(self) -> Any:
        """Copied first, as there."""
        return self.inner.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.inner!r})"


class OtherDevice(TorchFunctionMode):
    """Within, "cuda" is the other device."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        places = [
            x for x in (*args, kwargs.get("device")) if isinstance(x, (str, torch.device)) and str(x)[:4] == "cuda"
        ]
        if not places or func is torch.device:
            return func(*args, **kwargs)
        cpu = torch.device("cpu")
        there = [cpu if x is places[0] else x for x in args]
        if "device" in kwargs:
            kwargs["device"] = cpu
        owner = args[0] if args and isinstance(args[0], Elsewhere) else None
        if owner is not None and func is torch.Tensor.to and not kwargs.get("copy"):
            rest = [x for x in args[1:] if x is not places[0]]
            kwargs.pop("device", None)
            return owner.to(*rest, **kwargs) if rest or kwargs else owner
        made = func(*(_inner(x) for x in there), **kwargs)
        return Elsewhere(made) if isinstance(made, torch.Tensor) and not isinstance(made, Elsewhere) else made


def _inner(x: Any) -> Any:
    return x.inner if isinstance(x, Elsewhere) else x
