"""Every slice's figures in one place: a record in, a Plotly figure or a CircuitsVis view out."""

from importlib import import_module
from typing import Any

_SLICES = ("direction", "attribution", "hijacking", "behaviour", "exactness")


def _figures() -> dict[str, Any]:
    homes = [*(f"{name}.figures" for name in _SLICES), "direction.cone_figures"]
    homes += [f"hijacking.{name}_figures" for name in ("curve", "grid", "many")]
    homes += [f"{name}.views" for name in ("attribution", "direction", "hijacking")]
    found = {k: v for home in homes for k, v in vars(import_module(f"refusal_lens.{home}")).items()}
    return {name: value for name, value in found.items() if name.startswith("plot_") or name.endswith("_view")}


def __getattr__(name: str) -> Any:
    if name.startswith("_") or name not in (found := _figures()):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return found[name]


def __dir__() -> list[str]:
    return sorted(_figures())
