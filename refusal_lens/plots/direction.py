"""Figures of the direction itself: the selection grid, refusal rates, the trace by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..records import DirectionTrace, Selection
from ..stats import Rate
from . import style

_SCORES = {
    "bypass": "bypass: refusal metric of<br>harmful prompts, ablated",
    "induce": "induce: refusal metric of<br>harmless prompts, added",
    "kl": "KL of the next token on<br>harmless prompts, ablated",
}


def plot_selection(selection: Selection, pos_labels: Sequence[str] = ()) -> go.Figure:
    """The three scores by layer, one line a position, thresholds dashed, the chosen candidate starred (paper
    appendix C)."""
    figure = make_subplots(rows=1, cols=3, subplot_titles=list(_SCORES.values()), horizontal_spacing=0.07)
    limits = {
        "bypass": ("baseline", selection.baseline_harmful),
        "induce": ("threshold", selection.thresholds["min_induce"]),
        "kl": ("threshold", selection.thresholds["max_kl"]),
    }
    n_layers = selection.scores.bypass.shape[1]
    cut = int(selection.thresholds["layer_cutoff"] * n_layers)
    for col, name in enumerate(_SCORES, start=1):
        grid = getattr(selection.scores, name)
        for i, pos in enumerate(selection.scores.positions):
            token = f" {pos_labels[i]}" if i < len(pos_labels) else ""
            values = [None if v != v else v for v in grid[i].tolist()]
            reasons = [reason or "kept" for reason in selection.reasons[i]]
            figure.add_scatter(
                x=list(range(n_layers)),
                y=values,
                name=f"{pos}{token}",
                legendgroup=str(pos),
                showlegend=col == 1,
                mode="lines+markers",
                marker={"size": 5, "color": style.colour("", i)},
                line={"color": style.colour("", i)},
                customdata=reasons,
                hovertemplate=f"position {pos}{token}, layer %{{x}}<br>{name} %{{y:.3f}}<br>%{{customdata}}"
                "<extra></extra>",
                row=1,
                col=col,
            )
        label, value = limits[name]
        figure.add_hline(y=value, line_dash="dash", line_color=style.GREY, annotation_text=label, row=1, col=col)
        if cut < n_layers:
            figure.add_vline(x=cut - 0.5, line_dash="dot", line_color=style.GREY, row=1, col=col)
        figure.add_scatter(
            x=[selection.chosen.layer],
            y=[selection.score(name)],
            mode="markers",
            name=f"chosen {selection.chosen.label}",
            legendgroup="chosen",
            showlegend=col == 1,
            marker={"symbol": "star", "size": 16, "color": style.RED, "line": {"width": 1, "color": "white"}},
            row=1,
            col=col,
        )
    figure.update_xaxes(title_text="layer")
    style.finish(figure, height=450)
    figure.update_annotations(font_size=12)
    return figure.update_layout(margin_t=60, legend={"y": -0.22, "yanchor": "top", "x": 0.5, "xanchor": "center"})


def plot_refusal_rates(rates: Mapping[str, Mapping[str, Rate]]) -> go.Figure:
    """Refusal rates with 95% intervals: one group a prompt set, one bar a condition, placebos hatched (paper Figs. 1
    and 3)."""
    figure = go.Figure()
    conditions = dict.fromkeys(c for by_condition in rates.values() for c in by_condition)
    for i, condition in enumerate(conditions):
        sets = [name for name in rates if condition in rates[name]]
        found = [rates[name][condition] for name in sets]
        axis = [sets, [style.readable(condition)] * len(sets)]
        figure.add_bar(
            x=axis,
            y=[r.rate for r in found],
            name=style.readable(condition),
            marker=style.marker(condition, i),
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [r.high - r.rate for r in found],
                "arrayminus": [r.rate - r.low for r in found],
            },
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
    return style.finish(figure.update_layout(barmode="overlay", bargap=0.35, showlegend=False))


def plot_trace(trace: DirectionTrace, value: str = "cosine") -> go.Figure:
    """Cosine (or projection) of the last position with r̂ by layer, mean over prompts and a band of one SD
    (paper Fig. 5)."""
    figure = go.Figure()
    grid = getattr(trace, value)
    layers = list(range(grid.shape[1]))
    for i, condition in enumerate(trace.conditions):
        mean, spread = grid[i].mean(-1), grid[i].std(-1, correction=0)
        tint = style.colour(condition, i)
        figure.add_scatter(
            x=layers + layers[::-1],
            y=(mean + spread).tolist() + (mean - spread).flip(0).tolist(),
            fill="toself",
            fillcolor=style.faded(tint),
            line={"width": 0},
            hoverinfo="skip",
            mode="lines",
            showlegend=False,
        )
        figure.add_scatter(
            x=layers,
            y=mean.tolist(),
            name=style.readable(condition),
            mode="lines+markers",
            line={"color": tint, "width": 2, "dash": style.dash(condition)},
        )
    if trace.direction is not None:
        figure.add_vline(x=trace.direction.layer, line_dash="dot", line_color=style.GREY, annotation_text="layer of r")
    figure.update_xaxes(title_text="resid_pre of layer (last: the end)")
    figure.update_yaxes(title_text="cosine with r̂" if value == "cosine" else "projection on r̂")
    return style.finish(figure)
