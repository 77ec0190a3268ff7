"""Figures of the direction: selection grid, trace by layer, stability, subspaces, transfer, fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..records.base import figure as registered
from ..report import style
from .effect_records import EffectMatrix, FineTuning, SubspaceEffects, SystemPrompts
from .records import DirectionTrace, FoundDirection, Selection, Stability


@registered("resamples won", Stability)
def plot_stability(record: Stability) -> go.Figure:
    """How often each candidate wins over bootstrap resamples, and the cosine between every two winners."""
    figure = make_subplots(rows=1, cols=2, subplot_titles=("share of resamples won", "cosine between winners"))
    wins = record.wins
    figure.add_bar(
        x=list(wins),
        y=[r.rate for r in wins.values()],
        error_y=style.error_bars(wins.values()),
        marker_color=[style.GREEN if label == record.reference.label else style.GREY for label in wins],
        showlegend=False,
        row=1,
        col=1,
    )
    if record.winners:
        labels = [f"{i}: {w.label}" for i, w in enumerate(record.winners)]
        figure.add_heatmap(
            z=record.cosines.tolist(),
            x=labels,
            y=labels,
            colorscale=style.DIVERGING,
            zmin=-1,
            zmax=1,
            hovertemplate="%{x} and %{y}: %{z:.3f}<extra></extra>",
            row=1,
            col=2,
        )
    figure.update_yaxes(tickformat=".0%", range=[0, 1.05], row=1, col=1)
    return style.finish(figure, height=420)


@registered("by step", FineTuning)
def plot_fine_tuning(record: FineTuning) -> go.Figure:
    """Refusal rates under the old direction, and its cosine with the tuned model's own, by optimizer steps."""
    titles = ("harmful prompts, refused", "harmless prompts, refused", "cosine with the tuned model's own")
    figure = make_subplots(rows=1, cols=3, subplot_titles=titles)
    for col, rates in enumerate((record.harmful, record.harmless), start=1):
        for i, condition in enumerate(rates[0]):
            values = [row[condition] for row in rates]
            figure.add_scatter(
                x=list(record.steps),
                y=[r.rate for r in values],
                error_y=style.error_bars(values),
                name=style.readable(condition),
                legendgroup=condition,
                showlegend=col == 1 or condition != "baseline",
                mode="lines+markers",
                line={"color": style.colour(condition, i)},
                row=1,
                col=col,
            )
        figure.update_yaxes(tickformat=".0%", range=[-0.05, 1.05], row=1, col=col)
    figure.add_scatter(
        x=list(record.steps),
        y=list(record.cosine),
        mode="lines+markers",
        line={"color": style.GREEN},
        showlegend=False,
        row=1,
        col=3,
    )
    figure.update_yaxes(range=[-0.05, 1.05], row=1, col=3)
    figure.update_xaxes(title_text="optimizer steps")
    return style.finish(figure, height=420)


@registered("by size", SubspaceEffects)
def plot_subspaces(record: SubspaceEffects) -> go.Figure:
    """Refusal metric on harmful and KL on harmless prompts by the number of directions ablated."""
    titles = ("refusal metric, harmful prompts", "KL of the next token, harmless prompts")
    figure = make_subplots(rows=1, cols=2, subplot_titles=titles)
    for col, grid in enumerate((record.bypass, record.kl), start=1):
        for i, (kind, row) in enumerate(zip(record.kinds, grid, strict=True)):
            figure.add_scatter(
                x=list(record.ks),
                y=[interval.mean for interval in row],
                error_y=style.error_bars(row),
                name=kind,
                legendgroup=kind,
                showlegend=col == 1,
                mode="lines+markers",
                line={"color": style.GREY if kind == "random" else style.colour("", i)},
                row=1,
                col=col,
            )
    figure.add_hline(y=record.baseline.mean, line_dash="dash", line_color=style.GREY, row=1, col=1)
    figure.update_xaxes(title_text="directions ablated", dtick=1)
    return style.finish(figure, height=420)


@registered("matrix", EffectMatrix)
def plot_effects(record: EffectMatrix) -> go.Figure:
    """Change of each ground's metric under each direction, beside the same under random directions."""
    figure = make_subplots(rows=1, cols=2, subplot_titles=(record.effect, "random directions"), shared_yaxes=True)
    limit = max(abs(i.mean) for grid in (record.change, record.control) for row in grid for i in row) or 1.0
    for col, grid in enumerate((record.change, record.control), start=1):
        figure.add_heatmap(
            z=[[i.mean for i in row] for row in grid],
            x=list(record.grounds),
            y=list(record.directions),
            text=[[f"{i.mean:.2f}<br>[{i.low:.2f}, {i.high:.2f}]" for i in row] for row in grid],
            texttemplate="%{text}",
            colorscale=style.DIVERGING,
            zmin=-limit,
            zmax=limit,
            showscale=col == 2,
            row=1,
            col=col,
        )
    figure.update_yaxes(title_text="direction", col=1)
    figure.update_xaxes(title_text="metric on")
    return style.finish(figure, height=420)


@registered("by system prompt", SystemPrompts)
def plot_system_prompts(record: SystemPrompts) -> go.Figure:
    """Refusal rates by system prompt, one group each (paper appendix F.2)."""
    names = [(system[:40] + "…" if len(system) > 40 else system) or "(none)" for system in record.systems]
    return style.plot_refusal_rates(dict(zip(names, record.rates, strict=True)))


_SCORES = {
    "bypass": "bypass: refusal metric of<br>harmful prompts, ablated",
    "induce": "induce: refusal metric of<br>harmless prompts, added",
    "kl": "KL of the next token on<br>harmless prompts, ablated",
}


@registered("scores by layer", Selection, FoundDirection)
def plot_selection(selection: Selection | FoundDirection, pos_labels: Sequence[str] = ()) -> go.Figure:
    """The three scores by layer, one line per position, thresholds dashed, the chosen candidate starred (paper
    appendix C)."""
    if isinstance(selection, FoundDirection):
        pos_labels, selection = pos_labels or selection.candidates.pos_labels, selection.selection
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


@registered("by layer", DirectionTrace)
def plot_trace(trace: DirectionTrace, value: str = "cosine") -> go.Figure:
    """Cosine (or projection) of the last position with r̂ by layer, mean over prompts and a band of one SD
    (paper Fig. 5)."""
    figure = go.Figure()
    grid = getattr(trace, value)
    layers = list(range(grid.shape[1]))
    for i, condition in enumerate(trace.conditions):
        tint = style.colour(condition, i)
        style.add_band(figure, grid[i], tint, 0.18)
        figure.add_scatter(
            x=layers,
            y=grid[i].mean(-1).tolist(),
            name=style.readable(condition),
            mode="lines+markers",
            line={"color": tint, "width": 2, "dash": style.dash(condition)},
        )
    if trace.direction is not None:
        figure.add_vline(x=trace.direction.layer, line_dash="dot", line_color=style.GREY, annotation_text="layer of r")
    figure.update_xaxes(title_text="resid_pre of layer (last: the end)")
    figure.update_yaxes(title_text="cosine with r̂" if value == "cosine" else "projection on r̂")
    return style.finish(figure)
