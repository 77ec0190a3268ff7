"""Field annotations of a record: validate values from untrusted files, and name the axes of tensors."""

import dataclasses
import types
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from jaxtyping import jaxtyped


def misfit(cls: type, values: Mapping[str, Any]) -> str:
    """Say which of ``values`` does not match its field of ``cls``; "" if all do.

    Types are compared as annotated; tensors by dtype and shape, where an axis name has one size throughout
    (``Float[Tensor, "pos layer"]`` in two fields: the same sizes in both).
    """
    hints = _hints(cls)
    with jaxtyped("context"):
        for name, value in values.items():
            if name in hints and not _fits(value, hints[name]):
                shape = getattr(value, "shape", None)
                what = type(value).__name__ + (f" of shape {tuple(shape)}" if shape is not None else "")
                return f"{cls.__name__}.{name} is a {what}, which does not fit"
    return ""


@lru_cache(maxsize=256)
def axis_names(cls: type, also: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    """Axis names of each tensor field, and of ``also``, properties or methods that return tensors:
    ``Float[Tensor, "layer head"]`` gives ("layer", "head")."""
    hints = {f.name: _hints(cls)[f.name] for f in dataclasses.fields(cls)}
    for name in also:
        found = getattr(cls, name)
        hints[name] = get_type_hints(found.fget if isinstance(found, property) else found)["return"]
    options = ((name, option) for name, hint in hints.items() for option in get_args(hint) or (hint,))
    return {name: tuple(option.dim_str.split()) for name, option in options if hasattr(option, "dim_str")}


@lru_cache(maxsize=256)
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _fits(value: Any, hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(_fits(item, args[0]) for item in value)
        return len(value) == len(args) and all(map(_fits, value, args))
    if origin is dict:
        return isinstance(value, dict) and all(_fits(k, args[0]) and _fits(v, args[1]) for k, v in value.items())
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)
