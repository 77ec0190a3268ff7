"""One style for all figures: colours per condition (Okabe-Ito, colour-blind safe), hatched placebos, fonts, layout."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from ..errors import LabelError
from ..records.base import Record
from ..records.base import figure as registered
from ..stats import Interval, Rate
from .drawing import TITLE, Drawing

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PINK, SKY, YELLOW, GREY = "#CC79A7", "#56B4E9", "#F0E442", "#7F7F7F"
CONDITION_COLOURS = {
    condition: tint
    for tint, conditions in {
        RED: ("harmful", "plain", "refused"),
        BLUE: ("harmless", "orthogonalized", "false_refusal_ablation", "answered", "changed"),
        GREEN: ("ablation", "direction", "heads"),
        ORANGE: ("addition", "adversarial", "suffix", "moved"),
        PINK: ("subtraction", "shuffled"),
        SKY: ("random_ablation", "random_suffix", "random", "random_heads"),
        YELLOW: ("random_addition", "matched", "off topic or empty"),
        GREY: ("baseline", "random direction", "placebo", "degenerate"),
        "#9CC7E4": ("random_orthogonalized", "random_false_refusal_ablation"),
        "#E8C6D8": ("random_subtraction",),
    }.items()
    for condition in conditions
}
REGION_COLOURS = {"bos": GREY, "template_pre": SKY, "instruction": BLUE, "suffix": ORANGE, "template_post": GREEN}
CYCLE = (BLUE, ORANGE, GREEN, PINK, SKY, RED, GREY)
DIVERGING = "RdBu_r"
SEQUENTIAL = "Viridis"


def colour(condition: str, index: int = 0) -> str:
    """The colour of a condition, the same in every figure; others take turns."""
    return CONDITION_COLOURS.get(condition, CYCLE[index % len(CYCLE)])


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


def add_band(figure: Drawing, grid: Float[Tensor, "site prompt"], tint: str, opacity: float, **place: Any) -> None:
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


def add_conditions(figure: Drawing, frame: pd.DataFrame, x: str, value: str, **place: Any) -> None:
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


def panels(titles: Sequence[str], x: Sequence[str] = (), y: Sequence[str] = (), **layout: Any) -> Drawing:
    """Make a figure of panels side by side, with the titles of their axes; ``panel`` names one of them."""
    figure = Drawing(make_subplots(rows=1, cols=len(titles), subplot_titles=list(titles), **layout))
    for col, (across, up) in enumerate(zip_longest(x, y), start=1):
        figure.update_xaxes(title_text=across, row=1, col=col).update_yaxes(title_text=up, row=1, col=col)
    return figure


def panel(col: int, row: int = 1) -> dict[str, int]:
    """A panel, as Plotly's functions take it."""
    return {"row": row, "col": col}


def add_cells(figure: Drawing, cells: Sequence[Sequence[Interval]], **look: Any) -> None:
    """Draw a heatmap of means, each cell with its interval."""
    means = [[cell.mean for cell in row] for row in cells]
    text = [[f"{cell.mean:.2f}<br>[{cell.low:.2f}, {cell.high:.2f}]" for cell in row] for row in cells]
    figure.add_heatmap(z=means, text=text, texttemplate="%{text}", **look)


def diverging(limit: float, title: str = "") -> dict[str, Any]:
    """Colours of a heatmap that are white at 0 and strongest at ``limit`` on either side."""
    look = {"colorscale": DIVERGING, "zmin": -limit, "zmax": limit}
    return {**look, "colorbar": {"title": title}} if title else look


def add_bars(figure: Drawing, x: Sequence[Any], found: Sequence[Interval | Rate], name: str, **look: Any) -> None:
    """Draw means as bars (lying ones with ``orientation="h"``) with their intervals; no bar where a mean is unknown."""
    means, ends = [None if i.mean != i.mean else i.mean for i in found], error_bars(found)
    places = {"x": list(x), "y": means, "error_y": ends}
    if look.get("orientation") == "h":
        places = {"x": means, "y": list(x), "error_x": ends}
    figure.add_bar(**places, name=name, **look)


def add_line(figure: Drawing, x: Sequence[Any], found: Sequence[Interval | Rate], name: str, **look: Any) -> None:
    """Draw means as a line of markers with their intervals."""
    heights = [i.mean for i in found]
    figure.add_scatter(x=list(x), y=heights, error_y=error_bars(found), name=name, mode="lines+markers", **look)


def add_regions(figure: Drawing, x: Sequence[str], values: Mapping[str, list[float]], **look: Any) -> None:
    """Draw stacked bars, one colour per region of the prompt; regions of zeros are left out."""
    for region, heights in values.items():
        if any(heights):
            name = readable(region)
            hover = f"%{{x}}, {name}: %{{y:.3f}}<extra></extra>"
            tint = REGION_COLOURS[region]
            figure.add_bar(
                x=list(x), y=heights, name=name, legendgroup=region, marker_color=tint, hovertemplate=hover, **look
            )


def waterfall(names: Sequence[str], values: Sequence[float], total: tuple[str, float], rise: str, unit: str) -> Drawing:
    """Draw parts one on top of the other, rising ones coloured ``rise``, and what they add up to (name, height)."""
    figure = Drawing(
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
    return figure.update_xaxes(title_text="part").update_yaxes(title_text=unit).update_layout(showlegend=False)


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


def token_strip(
    texts: Sequence[str],
    values: Sequence[float],
    limit: float = 0,
    notes: Sequence[str] = (),
    *,
    width: int = 12,
    unit: str = "",
) -> go.Heatmap:
    """Tokens in lines of ``width``, coloured by their values, the strongest colours at ``limit`` (the largest value if
    0); ``notes`` are shown on hover."""

    def lines(items: Sequence[Any], fill: Any) -> list[list[Any]]:
        rows = [list(items[start : start + width]) for start in range(0, len(items), width)]
        return [row + [fill] * (width - len(row)) for row in rows]

    return go.Heatmap(
        z=lines(values, None),
        text=lines(texts, ""),
        customdata=lines(notes, "") if notes else None,
        texttemplate="%{text}",
        textfont={"size": 10},
        xgap=1,
        ygap=4,
        **diverging(limit or max(map(abs, values)) or 1.0, unit),
        showscale=bool(unit),
        hovertemplate="%{text}<br>" + "%{customdata}<br>" * bool(notes) + "%{z:.3f}<extra></extra>",
        hoverongaps=False,
    )


def add_attention(
    figure: Drawing, weights: Sequence[Sequence[float]], tokens: Sequence[str], place: Mapping[str, int] | None = None
) -> None:
    """Draw attention from every token (rows) to itself and those before it (columns), tokens named on hover."""
    index, place = list(range(len(tokens))), dict(place or {})
    figure.add_heatmap(
        z=[[round(v, 4) if j <= i else None for j, v in enumerate(row)] for i, row in enumerate(weights)],
        x=index,
        y=index,
        text=[[f"{reader} ← {source}" for source in tokens[: i + 1]] for i, reader in enumerate(tokens)],
        colorscale=SEQUENTIAL,
        zmin=0,
        zmax=1,
        colorbar={"title": "weight", "lenmode": "pixels", "len": 220, "y": 1, "yanchor": "top"},
        showscale=place.get("col", 1) == 1 and place.get("row", 1) == 1,
        hovertemplate="%{text}<br>%{z:.3f}<extra></extra>",
        hoverongaps=False,
        **place,
    )
    ticks = {"tickvals": index, "ticktext": list(tokens), "showgrid": False}
    figure.update_xaxes(title_text="attends to", tickangle=-50, **ticks, **place)
    figure.update_yaxes(title_text="token", autorange="reversed", **ticks, **place)


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


def finish(figure: Drawing, title: str, height: int = 380) -> Drawing:
    """Shared layout: a white ground, so that ink and colours are the same everywhere; the legend on top, or under
    panels, whose headings need the room; ``height`` in pixels, with that of the title, which says what is shown."""
    headings = [a for a in figure.layout.annotations if a.yref == "paper" and a.yanchor == "bottom"]
    lines = max((a.text.count("<br>") + 1 for a in headings), default=0)
    for heading in headings:
        heading.font = {"size": 13}
    top, bottom = TITLE + max(30, 10 + 18 * lines), 60
    inner = height - top - bottom
    figure.update_layout(
        title={"text": title, "x": 0, "y": 1, "yanchor": "top", "font": {"size": 15}, "pad": {"t": 12, "l": 8}},
        height=height,
        margin={"l": 60, "r": 20, "t": top, "b": bottom},
        paper_bgcolor="#fff",
        plot_bgcolor="#fff",
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1 + 4 / inner, "xanchor": "right", "x": 1},
        hoverlabel={"namelength": -1},
    )
    axis = {"gridcolor": "rgba(128,128,128,0.25)", "zerolinecolor": "rgba(128,128,128,0.5)", "title_font_size": 13}
    figure.update_xaxes(**axis).update_yaxes(**axis)
    if headings:
        below = -75 / inner - (0.1 if any(abs(axis.tickangle or 0) > 20 for axis in figure.select_xaxes()) else 0)
        figure.update_layout(legend={"y": below, "yanchor": "top", "x": 0.5, "xanchor": "center"})
    return figure


def plot_refusal_rates(rates: Mapping[str, Mapping[str, Rate]], title: str = "Refusal rates by condition") -> Drawing:
    """Refusal rates with 95% intervals: one group per prompt set, one bar per condition, placebos hatched (paper
    Figs. 1 and 3)."""
    figure = Drawing()
    conditions = dict.fromkeys(c for by_condition in rates.values() for c in by_condition)
    for i, condition in enumerate(conditions):
        sets = [name for name in rates if condition in rates[name]]
        found = [rates[name][condition] for name in sets]
        axis = [sets, [readable(condition)] * len(sets)]
        hover = [f"{r.low:.0%} to {r.high:.0%}, n = {r.n}" for r in found]
        look = {"customdata": hover, "hovertemplate": "%{x}: %{y:.1%}<br>95%: %{customdata}<extra></extra>"}
        add_bars(figure, axis, found, readable(condition), marker=marker(condition, i), **look)
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
    figure.update_xaxes(title_text="condition and prompts")
    n = " or ".join(map(str, sorted({r.n for by_condition in rates.values() for r in by_condition.values()})))
    height = 400 if len(conditions) <= 5 else 520  # long names stand upright
    figure.update_layout(barmode="overlay", bargap=0.35, showlegend=False)
    return finish(figure, f"{title} (95% intervals, n = {n})", height)


@registered("numbers", Record)
def plot_numbers(record: Record) -> Drawing:
    """The numbers of a record's table, one line per column: for records without figures of their own."""
    table, figure = record.to_frame().select_dtypes("number"), Drawing()
    if table.empty:
        raise LabelError(f"{type(record).__name__} has no numbers to draw; its texts are in to_frame()")
    for i, name in enumerate(table):
        line = {"color": colour("", i)}
        figure.add_scatter(x=table.index, y=table[name], name=str(name), mode="lines+markers", line=line)
    figure.update_xaxes(title_text="row of the table").update_yaxes(title_text="value")
    return finish(figure, repr(record))
