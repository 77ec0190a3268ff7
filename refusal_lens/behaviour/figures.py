"""Figures of what a direction does: conditions, losses, the metric as a proxy, stability, subspaces, transfer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from ..report import style
from ..stats import Interval, Rate
from .records import EvaluationTable, HarnessScores, Losses, RefusalProxy


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
