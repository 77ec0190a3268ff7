"""Every slice's figures in one place: a record in, a Plotly figure or a CircuitsVis view out."""

from importlib import import_module
from typing import Any

_HOMES = (
    "direction.figures",
    "attribution.figures",
    "attribution.views",
    "hijacking.figures",
    "hijacking.views",
    "behaviour.figures",
    "exactness.figures",
)


def _figures() -> dict[str, Any]:
    modules = [import_module(f"refusal_lens.{home}") for home in _HOMES]
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if name.startswith("plot_") or name.endswith("_view")
    }


def __getattr__(name: str) -> Any:
    if name.startswith("_") or name not in (found := _figures()):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return found[name]


def __dir__() -> list[str]:
    return sorted(_figures())
