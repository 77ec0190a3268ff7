"""Figures of behaviour: replies and judges by condition, losses, benchmarks, the metric as a proxy."""

from collections.abc import Sequence

import pandas as pd

from ..errors import ResultError
from ..records.base import figure as registered
from ..refusal.classes import CLASSES
from ..refusal.records import Completions, Metrics, RefusalTokens, metric_histogram
from ..report import style
from ..report.drawing import Drawing
from ..report.style import plot_refusal_rates
from ..stats import Rate
from .false_refusal_records import OverRefusal
from .records import EvaluationTable, HarnessScores, Losses, RefusalProxy


@registered("rates", EvaluationTable)
def plot_evaluation(table: EvaluationTable, judge: str = "substrings") -> Drawing:
    """Rates of one judge: one group per prompt set, one bar per condition (paper Figs. 1 and 3)."""
    rates: dict[str, dict[str, Rate]] = {}
    for (name, condition, who), rate in table.rates.items():
        if who == judge:
            rates.setdefault(name, {})[condition] = rate
    safety = any(v.judge == judge and v.kind == "safety" for v in table.verdicts)
    what = "Safe replies" if safety else "Refusal rates"
    figure = plot_refusal_rates(rates, f"{what} by condition, judged by {judge}")
    figure.update_yaxes(title_text="safe" if safety else "refusal rate")
    return figure


@registered("change of loss", Losses)
def plot_losses(records: Losses | Sequence[Losses]) -> Drawing:
    """Change in CE loss from the first condition: one group per data set, one bar per condition (Table 9)."""
    records = [records] if isinstance(records, Losses) else records
    figure = Drawing()
    for i, condition in enumerate(dict.fromkeys(c for record in records for c in record.conditions[1:])):
        found = [(r.dataset, r.change(condition, r.conditions[0])) for r in records if condition in r.conditions]
        name = style.readable(condition)
        hover = "%{x}, " + name + ": %{y:+.4f} nats per token<extra></extra>"
        look = {"marker": style.marker(condition, i), "hovertemplate": hover}
        style.add_bars(figure, [of for of, _ in found], [change for _, change in found], name, **look)
    figure.update_xaxes(title_text="text").update_yaxes(title_text="change in CE loss, nats per token")
    return style.finish(figure.update_layout(barmode="group"), "What each intervention costs (95% intervals)")


@registered("histogram", RefusalProxy)
def plot_proxy(record: RefusalProxy) -> Drawing:
    """Histogram of the refusal metric of refused and answered prompts (paper Figs. 9-10)."""
    title = f"Metric of refused and answered prompts: AUROC {record.auroc.mean:.3f}"
    return _histogram(record.histogram(), 0.0, title)


@registered("calibration", RefusalTokens)
def plot_calibration(tokens: RefusalTokens) -> Drawing:
    """Histogram of the refusal metric of refused and answered training prompts, and the calibrated point."""
    if tokens.calibration is None:
        raise ResultError("these refusal tokens are not calibrated: pass them to refusal.calibrate_tokens")
    table = metric_histogram(tokens.calibration.metric, tokens.calibration.refused)
    return _histogram(table, tokens.threshold, f"Metric of training prompts: refused above {tokens.threshold:.3g}")


def _histogram(table: pd.DataFrame, threshold: float, title: str) -> Drawing:
    figure = Drawing()
    for name in ("refused", "answered"):
        hover = f"{name}: %{{y}} prompts at %{{x:.2f}}<extra></extra>"
        look = {"marker_color": style.colour(name), "opacity": 0.65, "hovertemplate": hover}
        middle, width = (table["low"] + table["high"]) / 2, table["high"] - table["low"]
        figure.add_bar(x=middle, y=table[name], width=width, name=name, **look)
    figure.add_vline(x=threshold, line_dash="dash", line_color=style.GREY)
    figure.update_xaxes(title_text="refusal metric (log-odds)").update_yaxes(title_text="prompts")
    return style.finish(figure.update_layout(barmode="overlay"), title)


@registered("scores", HarnessScores)
def plot_harness(record: HarnessScores) -> Drawing:
    """Benchmark scores by condition with 99% intervals (paper Tables 3 and 8)."""
    table, figure = record.to_frame(), Drawing()
    style.add_conditions(figure, table.assign(benchmark=table["task"] + ", " + table["metric"]), "benchmark", "value")
    figure.update_xaxes(title_text="benchmark, metric").update_yaxes(title_text="score")
    return style.finish(figure, "Benchmark scores by condition (99% intervals)")


@registered("rates", Completions)
def plot_completions(record: Completions) -> Drawing:
    """Refusal rate of the replies by condition, 95% Clopper-Pearson intervals."""
    return plot_refusal_rates({record.prompt_set: record.rates})


@registered("classes", Completions)
def plot_reply_classes(records: Completions | Sequence[Completions]) -> Drawing:
    """Share of each class of replies by prompt set and condition, stacked; hover gives the 95% intervals."""
    records, figure = [records] if isinstance(records, Completions) else records, Drawing()
    rows = [(r.prompt_set, style.readable(condition), found) for r in records for condition, found in r.classes.items()]
    axis = [[name for name, _, _ in rows], [condition for _, condition, _ in rows]]
    for kind in CLASSES:
        shares, hover = [found[kind] for _, _, found in rows], f"%{{x}}, {kind}: %{{customdata}}<extra></extra>"
        look = {"name": kind, "marker": style.bar(style.colour(kind)), "hovertemplate": hover}
        text = [f"{share.rate:.0%}" if share.rate >= 0.05 else "" for share in shares]
        heights, said = [share.rate for share in shares], list(map(str, shares))
        figure.add_bar(x=axis, y=heights, text=text, customdata=said, **look)
    figure.update_yaxes(title_text="share of replies", range=[0, 1], tickformat=".0%")
    figure.update_xaxes(title_text="condition and prompts").update_layout(barmode="stack", bargap=0.35)
    n = " or ".join(map(str, sorted({share.n for _, _, found in rows for share in found.values()})))
    return style.finish(figure, f"Replies by class and condition (n = {n})", height=460)


@registered("metric", Metrics)
def plot_metrics(record: Metrics) -> Drawing:
    """Mean refusal metric by prompt set and condition, 95% bootstrap intervals."""
    table, figure = record.to_frame(), Drawing()
    table["prompts"] = table["prompts"].map(style.readable)
    style.add_conditions(figure, table, "prompts", "refusal_metric")
    figure.update_xaxes(title_text="prompts").update_yaxes(title_text="refusal metric (log-odds)")
    return style.finish(figure, "Refusal metric by condition (95% intervals)")


@registered("both kinds of refusal", OverRefusal)
def plot_over_refusal(record: OverRefusal) -> Drawing:
    """Refusal rate and mean change of the refusal metric by prompt set and condition, 95% intervals."""
    figure = style.panels(["refusal rate", "change of the refusal metric"])
    for i, condition in enumerate(record.conditions):
        look = {"marker": style.marker(condition, i), "legendgroup": condition}
        name = style.readable(condition)
        rates = [record.rates(s)[condition] for s in record.sets]
        style.add_bars(figure, record.sets, rates, name, **look, **style.panel(1))
        moved = [record.change(s, condition) for s in record.sets]
        style.add_bars(figure, record.sets, moved, name, showlegend=False, **look, **style.panel(2))
    figure.update_xaxes(title_text="prompts")
    figure.update_yaxes(title_text="refused", tickformat=".0%", range=[0, 1.05], row=1, col=1)
    figure.update_yaxes(title_text="log-odds", row=1, col=2).update_layout(barmode="group")
    n = ", ".join(f"{record.prompt_sets.count(s)} {s}" for s in record.sets)
    return style.finish(figure, f"Refusals of harmful and of borderline prompts (n = {n})", height=460)
