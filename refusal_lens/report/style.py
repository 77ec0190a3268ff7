"""One style for all figures: colours per condition (Okabe-Ito, colour-blind safe), hatched placebos, fonts, layout."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from ..stats import Interval, Rate

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
REGION_COLOURS = {"bos": GREY, "template_pre": SKY, "instruction": BLUE, "suffix": ORANGE, "template_post": GREEN}
_CYCLE = (BLUE, ORANGE, GREEN, PINK, SKY, RED, GREY)
DIVERGING = "RdBu_r"
SEQUENTIAL = "Viridis"


def colour(condition: str, index: int = 0) -> str:
    """The colour of a condition, the same in every figure; others take turns."""
    return CONDITION_COLOURS.get(condition, _CYCLE[index % len(_CYCLE)])


def marker(condition: str, index: int = 0) -> dict[str, Any]:
    """Plotly's marker of a condition's bar: its colour, hatched for a placebo."""
    return bar(colour(condition, index), "/" if condition.startswith("random") else "")


def bar(tint: str, hatch: str = "") -> dict[str, Any]:
    """Plotly's marker of a bar; controls are hatched, so that colour never tells alone."""
    look: dict[str, Any] = {"color": tint, "line": {"color": GREY, "width": 1}}
    if hatch:
        look["pattern"] = {"shape": hatch, "fgcolor": "#1b1f24", "fgopacity": 0.75, "size": 7, "solidity": 0.15}
    return look


def error_bars(found: Iterable[Interval | Rate], **look: Any) -> dict[str, Any]:
    """Plotly's error bars of intervals, each side with its own length; 0 where an end is unknown."""

    def known(side: float) -> float:
        return 0.0 if side != side else side

    sides = [(known(i.high - i.mean), known(i.mean - i.low)) for i in found]
    above, below = [side[0] for side in sides], [side[1] for side in sides]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, **look}


def intervals(frame: pd.DataFrame, value: str) -> list[Interval]:
    """The intervals of a table with the columns ``value``, low and high."""
    return [Interval(*row, 0) for row in zip(frame[value], frame["low"], frame["high"], strict=True)]


def add_band(figure: go.Figure, grid: Float[Tensor, "site prompt"], tint: str, opacity: float, **place: Any) -> None:
    """Draw mean ± one standard deviation over prompts, site by site, as a band."""
    mean, spread = grid.mean(-1), grid.std(-1, correction=0)
    sites = list(range(len(mean)))
    figure.add_scatter(
        x=sites + sites[::-1],
        y=(mean + spread).tolist() + (mean - spread).flip(0).tolist(),
        mode="lines",
        fill="toself",
        fillcolor=faded(tint, opacity),
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        **place,
    )


def add_conditions(figure: go.Figure, frame: pd.DataFrame, x: str, value: str, **place: Any) -> None:
    """Draw a table with the columns condition, ``x``, ``value``, low and high: one bar per condition in each group."""
    for i, (condition, rows) in enumerate(frame.groupby("condition", sort=False)):
        figure.add_bar(
            x=rows[x],
            y=rows[value],
            error_y=error_bars(intervals(rows, value)),
            name=readable(str(condition)),
            marker=marker(str(condition), i),
            **place,
        )
    figure.update_layout(barmode="group")


def panels(titles: Sequence[str], **layout: Any) -> go.Figure:
    """Make a figure of panels side by side; ``panel`` names one of them."""
    return make_subplots(rows=1, cols=len(titles), subplot_titles=list(titles), **layout)


def panel(col: int, row: int = 1) -> dict[str, int]:
    """A panel, as Plotly's functions take it."""
    return {"row": row, "col": col}


def diverging(limit: float, title: str = "") -> dict[str, Any]:
    """Colours of a heatmap that are white at 0 and strongest at ``limit`` on either side."""
    look = {"colorscale": DIVERGING, "zmin": -limit, "zmax": limit}
    return {**look, "colorbar": {"title": title}} if title else look


def add_bars(figure: go.Figure, x: Sequence[str], found: Sequence[Interval | Rate], name: str, **look: Any) -> None:
    """Draw means as bars with their intervals; no bar where a mean is unknown."""
    heights = [None if i.mean != i.mean else i.mean for i in found]
    figure.add_bar(x=list(x), y=heights, error_y=error_bars(found), name=name, **look)


def add_line(figure: go.Figure, x: Sequence[Any], found: Sequence[Interval | Rate], name: str, **look: Any) -> None:
    """Draw means as a line of markers with their intervals."""
    heights = [i.mean for i in found]
    figure.add_scatter(x=list(x), y=heights, error_y=error_bars(found), name=name, mode="lines+markers", **look)


def add_regions(figure: go.Figure, x: Sequence[str], values: Mapping[str, list[float]], **look: Any) -> None:
    """Draw stacked bars, one colour per region of the prompt; regions of zeros are left out."""
    for region, heights in values.items():
        if any(heights):
            name = readable(region)
            hover = f"%{{x}}, {name}: %{{y:.3f}}<extra></extra>"
            tint = REGION_COLOURS[region]
            figure.add_bar(
                x=list(x), y=heights, name=name, legendgroup=region, marker_color=tint, hovertemplate=hover, **look
            )


def waterfall(
    names: Sequence[str], values: Sequence[float], total: tuple[str, float], rise: str, unit: str
) -> go.Figure:
    """Draw parts one on top of the other, rising ones coloured ``rise``, and what they add up to (name, height)."""
    figure = go.Figure(
        go.Waterfall(
            x=[*names, total[0]],
            y=[*values, 0],
            measure=[*["relative"] * len(values), "total"],
            text=[f"{v:.2f}" for v in (*values, total[1])],
            textposition="outside",
            increasing={"marker": {"color": rise}},
            decreasing={"marker": {"color": BLUE}},
            totals={"marker": {"color": GREY}},
            hovertemplate="%{x}: %{text}<extra></extra>",
        )
    )
    return figure.update_yaxes(title_text=unit).update_layout(showlegend=False)


def layer_map(z: Float[Tensor, "site token"], columns: Sequence[str], unit: str) -> go.Heatmap:
    """A heatmap of layers (the last: the end) by tokens; the columns' names go on the axis with ``name_tokens``."""
    rows = [*map(str, range(z.shape[0] - 1)), "end"]
    # The first token's norm is often hundreds of times the others'; its colour may saturate, theirs must not.
    limit = float(z.nan_to_num().abs().flatten().quantile(0.98)) or 1.0
    return go.Heatmap(
        z=[[None if v != v else float(f"{v:.5g}") for v in row] for row in z.tolist()],
        x=list(range(len(columns))),
        y=rows,
        customdata=[list(columns)] * len(rows),
        **diverging(limit, unit),
        hovertemplate="%{customdata}, layer %{y}<br>%{z:.3f}<extra></extra>",
        hoverongaps=False,
    )


def legend_below(figure: go.Figure, y: float = -0.22) -> go.Figure:
    """Put the legend under the panels, where their titles need the room above."""
    return figure.update_layout(legend={"y": y, "yanchor": "top", "x": 0.5, "xanchor": "center"})


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


def plot_refusal_rates(rates: Mapping[str, Mapping[str, Rate]]) -> go.Figure:
    """Refusal rates with 95% intervals: one group per prompt set, one bar per condition, placebos hatched (paper
    Figs. 1 and 3)."""
    figure = go.Figure()
    conditions = dict.fromkeys(c for by_condition in rates.values() for c in by_condition)
    for i, condition in enumerate(conditions):
        sets = [name for name in rates if condition in rates[name]]
        found = [rates[name][condition] for name in sets]
        axis = [sets, [readable(condition)] * len(sets)]
        figure.add_bar(
            x=axis,
            y=[r.rate for r in found],
            name=readable(condition),
            marker=marker(condition, i),
            error_y=error_bars(found),
            customdata=[f"{r.low:.0%} to {r.high:.0%}, n = {r.n}" for r in found],
            hovertemplate="%{x}: %{y:.1%}<br>95%: %{customdata}<extra></extra>",
        )
        figure.add_scatter(
            x=axis,
            y=[r.high for r in found],
            text=[f"{r.rate:.0%}" for r in found],
            mode="text",
            textposition="top center",
            hoverinfo="skip",
            showlegend=False,
        )
    figure.update_yaxes(title_text="refusal rate", range=[0, 1.16], tickformat=".0%")
    return finish(figure.update_layout(barmode="overlay", bargap=0.35, showlegend=False))
