"""One look for all figures: colours per condition (Okabe-Ito, colour-blind safe), hatched placebos, fonts, layout."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PINK, SKY, YELLOW, GREY = "#CC79A7", "#56B4E9", "#F0E442", "#7F7F7F"
CONDITION_COLOURS = {
    "harmful": RED,
    "harmless": BLUE,
    "baseline": GREY,
    "ablation": GREEN,
    "random_ablation": SKY,
    "addition": ORANGE,
    "random_addition": YELLOW,
    "subtraction": PINK,
    "random_subtraction": "#E8C6D8",
    "orthogonalized": BLUE,
    "random_orthogonalized": "#9CC7E4",
    "adversarial": ORANGE,
    "random_suffix": SKY,
}
REGION_COLOURS = {
    "bos": GREY,
    "template_pre": SKY,
    "instruction": BLUE,
    "suffix": ORANGE,
    "template_post": GREEN,
}
_CYCLE = (BLUE, ORANGE, GREEN, PINK, SKY, RED, GREY)
DIVERGING = "RdBu_r"
SEQUENTIAL = "Viridis"


def colour(condition: str, index: int = 0) -> str:
    """The colour of a condition, the same in every figure; others take turns."""
    return CONDITION_COLOURS.get(condition, _CYCLE[index % len(_CYCLE)])


def marker(condition: str, index: int = 0) -> dict[str, Any]:
    """Plotly's marker of a bar: the condition's colour, hatched for a placebo, so that colour never tells alone."""
    look: dict[str, Any] = {"color": colour(condition, index), "line": {"color": GREY, "width": 1}}
    if condition.startswith("random"):
        look["pattern"] = {"shape": "/", "fgcolor": "#1b1f24", "fgopacity": 0.75, "size": 7, "solidity": 0.15}
    return look


def dash(condition: str) -> str:
    """Plotly's dash of a line: dashed for a placebo."""
    return "dash" if condition.startswith("random") else "solid"


def faded(hex_colour: str, opacity: float = 0.18) -> str:
    """The same colour, translucent: for bands."""
    red, green, blue = (int(hex_colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def readable(condition: str) -> str:
    """``random_ablation`` -> ``random ablation``."""
    return condition.replace("_", " ")


def finish(figure: go.Figure, title: str = "", height: int = 380) -> go.Figure:
    """Shared layout: transparent ground (so that light and dark pages both fit), legend on top."""
    figure.update_layout(
        title={"text": title, "x": 0.0, "xanchor": "left", "font": {"size": 15}} if title else None,
        height=height,
        margin={"l": 60, "r": 20, "t": 60 if title else 40, "b": 50},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "xanchor": "right", "x": 1},
        hoverlabel={"namelength": -1},
    )
    figure.update_xaxes(gridcolor="rgba(128,128,128,0.25)", zerolinecolor="rgba(128,128,128,0.5)")
    figure.update_yaxes(gridcolor="rgba(128,128,128,0.25)", zerolinecolor="rgba(128,128,128,0.5)")
    return figure


def one_line(text: str) -> str:
    """Plotly's line breaks as spaces: for tables."""
    return text.replace("<br>", " ")
