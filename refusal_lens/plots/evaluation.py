"""Figures of what a direction does: conditions, losses, the metric as a proxy, stability, subspaces, transfer."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..behaviour_records import EvaluationTable, HarnessScores, Losses, RefusalProxy, SystemPrompts
from ..direction_records import EffectMatrix, FineTuning, Stability, SubspaceEffects
from ..stats import Interval, Rate
from . import style
from .direction import plot_refusal_rates


def plot_evaluation(table: EvaluationTable, judge: str = "substrings") -> go.Figure:
    """Rates of one judge: one group a prompt set, one bar a condition (paper Figs. 1 and 3)."""
    rates: dict[str, dict[str, Rate]] = {}
    kind = ""
    for (name, condition, who), rate in table.rates.items():
        if who == judge:
            rates.setdefault(name, {})[condition] = rate
            kind = next(v.kind for v in table.verdicts if v.judge == judge)
    figure = plot_refusal_rates(rates)
    return figure.update_yaxes(title_text="safe" if kind == "safety" else "refusal rate")


def plot_losses(records: Sequence[Losses]) -> go.Figure:
    """Change of the CE loss against the first condition: one group a data set, one bar a condition (Table 9)."""
    figure = go.Figure()
    for i, condition in enumerate(dict.fromkeys(c for record in records for c in record.conditions[1:])):
        found = [(r.dataset, r.change(condition, r.conditions[0])) for r in records if condition in r.conditions]
        figure.add_bar(
            x=[name for name, _ in found],
            y=[change.mean for _, change in found],
            error_y=_bars([change for _, change in found]),
            name=style.readable(condition),
            marker_color=style.colour(condition, i),
            hovertemplate="%{x}, " + style.readable(condition) + ": %{y:+.4f} nats a token<extra></extra>",
        )
    figure.update_yaxes(title_text="change of CE loss, nats a token")
    return style.finish(figure.update_layout(barmode="group"))


def plot_proxy(record: RefusalProxy, bins: int = 30) -> go.Figure:
    """Histogram of the refusal metric of refused and answered prompts (paper Figs. 9-10)."""
    table = record.histogram(bins)
    figure = go.Figure()
    for name, tone in (("refused", style.RED), ("answered", style.BLUE)):
        figure.add_bar(
            x=(table["low"] + table["high"]) / 2,
            y=table[name],
            width=table["high"] - table["low"],
            name=name,
            marker_color=tone,
            opacity=0.65,
            hovertemplate=f"{name}: %{{y}} prompts at %{{x:.2f}}<extra></extra>",
        )
    figure.add_vline(x=0, line_dash="dash", line_color=style.GREY)
    figure.update_xaxes(title_text="refusal metric (log-odds)")
    figure.update_yaxes(title_text="prompts")
    return style.finish(figure.update_layout(barmode="overlay"), f"AUROC {record.auroc.mean:.3f}")


def plot_stability(record: Stability) -> go.Figure:
    """How often each candidate wins over bootstrap resamples, and the cosine between every two winners."""
    figure = make_subplots(rows=1, cols=2, subplot_titles=("share of resamples won", "cosine between winners"))
    wins = record.wins
    figure.add_bar(
        x=list(wins),
        y=[r.rate for r in wins.values()],
        error_y=_bars([Interval(r.rate, r.low, r.high, r.n) for r in wins.values()]),
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
                error_y=_bars([Interval(r.rate, r.low, r.high, r.n) for r in values]),
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


def plot_subspaces(record: SubspaceEffects) -> go.Figure:
    """Refusal metric on harmful and KL on harmless prompts by the number of directions ablated."""
    titles = ("refusal metric, harmful prompts", "KL of the next token, harmless prompts")
    figure = make_subplots(rows=1, cols=2, subplot_titles=titles)
    for col, grid in enumerate((record.bypass, record.kl), start=1):
        for i, (kind, row) in enumerate(zip(record.kinds, grid, strict=True)):
            figure.add_scatter(
                x=list(record.sizes),
                y=[interval.mean for interval in row],
                error_y=_bars(row),
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


def plot_system_prompts(record: SystemPrompts) -> go.Figure:
    """Refusal rates by system prompt, one group each (paper appendix F.2)."""
    names = [(system[:40] + "…" if len(system) > 40 else system) or "(none)" for system in record.systems]
    return plot_refusal_rates(dict(zip(names, record.rates, strict=True)))


def plot_harness(record: HarnessScores) -> go.Figure:
    """Benchmark scores by condition with 99% intervals (paper Tables 3 and 8)."""
    table = record.to_frame()
    figure = go.Figure()
    for i, condition in enumerate(table["condition"].unique()):
        rows = table[table["condition"] == condition]
        figure.add_bar(
            x=rows["task"] + ", " + rows["metric"],
            y=rows["value"],
            error_y={"type": "data", "array": (rows["high"] - rows["value"]).fillna(0)},
            name=style.readable(condition),
            marker_color=style.colour(condition, i),
        )
    return style.finish(figure.update_layout(barmode="group"))


def _bars(intervals: Sequence[Interval]) -> dict:
    return {
        "type": "data",
        "symmetric": False,
        "array": [i.high - i.mean for i in intervals],
        "arrayminus": [i.mean - i.low for i in intervals],
    }
