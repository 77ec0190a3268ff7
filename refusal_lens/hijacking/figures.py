"""Figures of a suffix inside a model: trace, heads, attention by region, split, ranking, tokens, causal tests, ROC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from ..attribution.token_records import AttentionPatterns
from ..attribution.views import attention_props
from ..data.suffixes import Suffix
from ..records.labels import REGIONS, visible
from ..report import style
from ..report.style import REGION_COLOURS
from ..report.views import View
from ..stats import Interval, mean_interval
from .causal_records import CausalTests
from .detector_records import Detectors
from .records import HijackingReport, Observation, SuffixResult, TokenEffects

_COLOURS = {
    "plain": style.RED,
    "suffix": style.ORANGE,
    "random": style.SKY,
    "shuffled": style.PINK,
    "harmless": style.BLUE,
}
PER_LINE = 12  # tokens of a suffix in a line
TRACES = {
    "cosine": ("cosine with r̂", "last position"),
    "projection": ("projection on r̂", "last position"),
    "instruction_cosine": ("cosine with r̂", "instruction's last token"),
    "instruction_projection": ("projection on r̂", "instruction's last token"),
}


def conditions(report: HijackingReport, result: SuffixResult) -> list[Observation]:
    """Plain, suffixed, random, shuffled, harmless: those that there are."""
    found = [report.plain, result.suffixed, result.random, result.shuffled, report.harmless]
    return [o for o in found if o is not None]


def suffix_label(index: int, suffix: Suffix) -> str:
    """How lists and clicks name a suffix."""
    text = visible(suffix.text.strip()).replace("␣", " ")
    return f"{index + 1}. {text if len(text) <= 60 else text[:59] + '…'}"


def _marker(condition: str) -> dict[str, Any]:
    return _bar(_COLOURS[condition], "/" if condition in ("random", "shuffled") else "")


def _bar(tint: str, hatch: str) -> dict[str, Any]:
    """A bar's look: controls are hatched, so that colour never tells alone."""
    look: dict[str, Any] = {"color": tint, "line": {"color": style.GREY, "width": 1}}
    if hatch:
        look["pattern"] = {"shape": hatch, "fgcolor": "#1b1f24", "fgopacity": 0.75, "size": 7, "solidity": 0.15}
    return look


def plot_suffix_trace(
    report: HijackingReport, result: SuffixResult, values: Sequence[str] = ("cosine", "instruction_cosine")
) -> go.Figure:
    """Cosine (or projection) by layer, mean over prompts with a band of one standard deviation (paper Fig. 5); one
    panel a position."""
    titles = [TRACES[value][1] for value in values]
    figure = make_subplots(rows=1, cols=len(values), subplot_titles=titles, horizontal_spacing=0.1)
    for col, value in enumerate(values, start=1):
        for o in conditions(report, result):
            grid = getattr(o, value)
            mean, spread, tint = grid.mean(-1), grid.std(-1, correction=0), _COLOURS[o.condition]
            sites = list(range(len(mean)))
            figure.add_scatter(
                x=sites + sites[::-1],
                y=(mean + spread).tolist() + (mean - spread).flip(0).tolist(),
                mode="lines",
                fill="toself",
                fillcolor=style.faded(tint, 0.15),
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
                row=1,
                col=col,
            )
            figure.add_scatter(
                x=sites,
                y=mean.tolist(),
                mode="lines",
                name=f"{o.condition}, n = {o.n}",
                legendgroup=o.condition,
                showlegend=col == 1,
                line={"color": tint, "width": 2, "dash": "dash" if o.condition in ("random", "shuffled") else "solid"},
                row=1,
                col=col,
            )
        figure.add_vline(x=report.direction.layer, line_dash="dot", line_color=style.GREY, row=1, col=col)
        figure.update_xaxes(title_text="resid_pre of layer (last: the end)", row=1, col=col)
        figure.update_yaxes(title_text=TRACES[value][0], row=1, col=col)
    site = result.departure()
    if site is not None:
        figure.add_vline(
            x=site, line_dash="dash", line_color=style.ORANGE, annotation_text="departs from random", row=1, col=1
        )
    style.finish(figure, height=430)
    return figure.update_layout(legend={"y": -0.22, "yanchor": "top", "x": 0.5, "xanchor": "center"})


def plot_suffix_heads(report: HijackingReport, result: SuffixResult) -> go.Figure:
    """What the top heads write along r̂ under each condition, with 95% intervals (paper Fig. 6a)."""
    figure = go.Figure()
    for o in conditions(report, result):
        found = [mean_interval(o.heads[layer, head].tolist()) for layer, head in report.top_heads]
        p = [float(result.p_heads[head]) for head in report.top_heads]
        figure.add_bar(
            x=list(report.head_labels),
            y=[i.mean for i in found],
            name=f"{o.condition}, n = {o.n}",
            marker=_marker(o.condition),
            error_y=_error(found),
            customdata=p,
            hovertemplate="%{x}: %{y:.3f}<br>random against suffix, adjusted p %{customdata:.2g}<extra></extra>",
        )
    figure.update_yaxes(title_text="along r̂")
    title = f"Top heads, chosen on {len(report.head_prompts)} other prompts"
    return style.finish(figure.update_layout(barmode="group"), title, height=420)


def plot_attention_regions(report: HijackingReport, result: SuffixResult, post: int = -1) -> go.Figure:
    """Attention of the top heads from one post-instruction position, by region: one panel a condition (paper
    Fig. 6b); bars add up to 1."""
    shown = [o for o in conditions(report, result) if o.condition in ("plain", "random", "suffix")]
    figure = make_subplots(
        rows=1, cols=len(shown), subplot_titles=[f"{o.condition} (n = {o.n})" for o in shown], shared_yaxes=True
    )
    for col, o in enumerate(shown, start=1):
        for i, region in enumerate(REGIONS):
            values = o.attention[:, post, :, i].mean(-1).tolist()
            if not any(values):
                continue
            figure.add_bar(
                x=list(report.head_labels),
                y=values,
                name=style.readable(region),
                legendgroup=region,
                showlegend=col == len(shown),
                marker_color=REGION_COLOURS[region],
                hovertemplate=f"%{{x}} to {style.readable(region)}: %{{y:.3f}}<extra></extra>",
                row=1,
                col=col,
            )
    label = report.post_labels[post] if len(report.post_labels) >= -post else ""
    figure.update_yaxes(title_text=f"attention from position {post} {label}", range=[0, 1], col=1)
    figure.update_layout(barmode="stack")
    style.finish(figure, height=420)
    return figure.update_layout(legend={"y": -0.2, "yanchor": "top", "x": 0.5, "xanchor": "center"})


def plot_attention_positions(report: HijackingReport, result: SuffixResult) -> go.Figure:
    """Attention to the suffix from every post-instruction position, by top head, suffix beside random tokens."""
    shown = (result.suffixed, result.random)
    figure = make_subplots(rows=1, cols=2, subplot_titles=["suffix", "random tokens"], shared_yaxes=True)
    region = REGIONS.index("suffix")
    for col, o in enumerate(shown, start=1):
        z = o.attention[..., region].mean(-1)
        n = z.shape[1]
        labels = [f"{text} ({i - n})" for i, text in enumerate(report.post_labels)] or [str(i - n) for i in range(n)]
        figure.add_heatmap(
            z=z.tolist(),
            x=labels,
            y=list(report.head_labels),
            zmin=0,
            zmax=1,
            colorscale=style.SEQUENTIAL,
            showscale=col == 2,
            colorbar={"title": "attention"},
            hovertemplate="%{y} from %{x}: %{z:.3f}<extra></extra>",
            row=1,
            col=col,
        )
    figure.update_yaxes(autorange="reversed")
    return style.finish(figure, "Attention to the suffix region", height=360)


def plot_split(report: HijackingReport, result: SuffixResult, against: str = "random") -> go.Figure:
    """Each top head's drop, split into attention moved and values changed, which add up to it.

    Args:
        against: the condition that the drop counts from, "random" or "plain".
    """
    split = result.from_random if against == "random" else result.from_plain
    figure = go.Figure()
    for name, grid, tint in (
        ("attention moved", split.moved, style.ORANGE),
        ("values changed", split.changed, style.BLUE),
    ):
        found = [mean_interval(grid[head].tolist()) for head in report.top_heads]
        figure.add_bar(
            x=list(report.head_labels),
            y=[i.mean for i in found],
            name=name,
            marker_color=tint,
            error_y=_error(found),
            hovertemplate=f"%{{x}}, {name}: %{{y:.3f}}<extra></extra>",
        )
    drops = [float(split.drop[head].mean()) for head in report.top_heads]
    figure.add_scatter(
        x=list(report.head_labels),
        y=drops,
        name="whole drop",
        mode="markers",
        marker={"symbol": "diamond", "size": 9, "color": style.GREY},
    )
    figure.update_yaxes(title_text=f"drop along r̂ from {against}")
    figure.update_layout(barmode="relative")
    return style.finish(figure, f"What each head's drop is made of (n = {split.moved.shape[-1]})", height=420)


def plot_drop_waterfall(report: HijackingReport, result: SuffixResult, site: int | None = None) -> go.Figure:
    """The drop of the projection at the last position from plain to suffixed, part by part: attention by region of its
    sources, attention bias, MLPs."""
    table = report.drop_parts(result, site)
    parts = table[(table["part"] != "total") & (table["mean"].abs() > 0)]
    total = float(table.loc[table["part"] == "total", "mean"].iloc[0])
    figure = go.Figure(
        go.Waterfall(
            x=[*(style.readable(name) for name in parts["part"]), "whole drop"],
            y=[*parts["mean"].tolist(), 0],
            measure=[*["relative"] * len(parts), "total"],
            text=[f"{v:.2f}" for v in (*parts["mean"], total)],
            textposition="outside",
            increasing={"marker": {"color": style.ORANGE}},
            decreasing={"marker": {"color": style.BLUE}},
            totals={"marker": {"color": style.GREY}},
            hovertemplate="%{x}: %{text}<extra></extra>",
        )
    )
    figure.update_xaxes(tickangle=-30)
    figure.update_yaxes(title_text="drop along r̂ from plain to suffixed")
    where = report.direction.layer if site is None else site
    title = f"Where the drop comes from, up to resid_pre of layer {where} (n = {report.plain.n})"
    return style.finish(figure, title, height=440).update_layout(showlegend=False)


def plot_suffix_ranking(report: HijackingReport) -> go.Figure:
    """Refusal metric of every suffix (mean and 95% interval over prompts), and strength against universality."""
    rho, p = report.strength_against_universality()
    note = "strength and universality" if rho != rho else f"Spearman {rho:.2f} (p = {p:.1g})"
    figure = make_subplots(
        rows=1,
        cols=2,
        column_widths=[0.6, 0.4],
        horizontal_spacing=0.12,
        subplot_titles=(f"all suffixes (n = {report.plain.n})", note),
    )
    order = sorted(range(len(report.suffixes)), key=lambda i: float(report.screened[i].mean()))
    universal, strength = report.screened_universality(), report.screened_strength.mean(1).tolist()
    for attack, name, tint, shape in (
        (True, "meant to stop refusals", style.ORANGE, "circle"),
        (False, "benign or random", style.SKY, "diamond"),
    ):
        rows = [(k, i) for k, i in enumerate(order, start=1) if report.suffixes[i].is_attack == attack]
        if not rows:
            continue
        found = [mean_interval(report.screened[i].tolist()) for _, i in rows]
        labels = [suffix_label(i, report.suffixes[i]) for _, i in rows]
        look = {"color": tint, "size": 9, "symbol": shape, "line": {"color": style.GREY, "width": 1}}
        shared = {"mode": "markers", "name": name, "legendgroup": name, "marker": look, "customdata": labels}
        figure.add_scatter(
            x=[i.mean for i in found],
            y=[k for k, _ in rows],
            error_x=_error(found),
            hovertemplate="%{customdata}<br>refusal metric %{x:.2f}<extra></extra>",
            row=1,
            col=1,
            **shared,
        )
        figure.add_scatter(
            x=[strength[i] for _, i in rows],
            y=[universal[i].rate for _, i in rows],
            showlegend=False,
            hovertemplate="%{customdata}<br>share %{x:.2f}, metric below 0 on %{y:.0%}<extra></extra>",
            row=1,
            col=2,
            **shared,
        )
    figure.add_vline(x=0, line_dash="dot", line_color=style.GREY, row=1, col=1)
    figure.add_vline(x=float(report.plain.metric.mean()), line_color=style.RED, annotation_text="plain", row=1, col=1)
    figure.update_xaxes(title_text="refusal metric", row=1, col=1)
    figure.update_yaxes(title_text="rank", autorange="reversed", row=1, col=1)
    figure.update_xaxes(title_text="share of the top heads' write", row=1, col=2)
    figure.update_yaxes(title_text="share of instructions with metric < 0", range=[-0.05, 1.05], row=1, col=2)
    style.finish(figure, height=max(380, 160 + 14 * len(order)))
    return figure.update_layout(legend={"y": -0.2, "yanchor": "top", "x": 0.5, "xanchor": "center"})


def plot_token_effects(record: TokenEffects) -> go.Figure:
    """The suffix's text, token by token: what leaving each out gives back of the refusal metric, above what the top
    heads take from it along r̂."""
    n, prompts = record.removed.shape
    names = (f"metric back without it (n = {prompts})", "written along r̂")
    lines = [range(start, min(start + PER_LINE, n)) for start in range(0, n, PER_LINE)]
    figure = make_subplots(rows=2, cols=1, subplot_titles=names, vertical_spacing=0.25 / len(lines))
    for row, grid in ((1, record.removed), (2, record.written)):
        values = grid.mean(-1).tolist()
        limit = max(map(abs, values)) or 1.0
        empty = [None] * (PER_LINE if len(lines) > 1 else 0)
        figure.add_heatmap(
            z=[([values[k] for k in line] + empty)[:PER_LINE] for line in lines],
            text=[
                ([f"{visible(record.tokens[k])}<br>{values[k]:.2f}" for k in line] + empty)[:PER_LINE] for line in lines
            ],
            texttemplate="%{text}",
            colorscale=style.DIVERGING,
            zmin=-limit,
            zmax=limit,
            showscale=False,
            xgap=2,
            ygap=2,
            hoverongaps=False,
            hovertemplate="%{text}<extra></extra>",
            row=row,
            col=1,
        )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, autorange="reversed")
    return style.finish(figure, height=150 + 110 * len(lines))


def plot_causal_tests(record: CausalTests) -> go.Figure:
    """Share of the drop that each test brings back (reverse tests: brings about), beside random heads and placebo."""
    names = [t.name for t in record.tests]
    figure = go.Figure()
    for label, of, tint, hatch in (
        ("the heads named", record.recovered, style.GREEN, ""),
        ("random heads of the same layers", record.recovered_random, style.SKY, "/"),
        ("norm-matched placebo", record.recovered_placebo, style.GREY, "x"),
    ):
        found = [of(name) for name in names]
        figure.add_bar(
            x=names,
            y=[None if i.mean != i.mean else i.mean for i in found],
            name=label,
            marker=_bar(tint, hatch),
            error_y=_error(found),
            hovertemplate="%{x}: %{y:.2f}<extra></extra>",
        )
    figure.add_hline(y=1, line_dash="dot", line_color=style.GREY)
    figure.update_xaxes(tickangle=-30)
    figure.update_yaxes(title_text="share of the metric's drop")
    figure.update_layout(barmode="group")
    return style.finish(figure, f"Causal tests (n = {len(record.plain)})", height=520)


def plot_roc(record: Detectors) -> go.Figure:
    """ROC of each detector and harmful group at r̂'s layer, and AUROC by layer with 95% bands."""
    figure = make_subplots(rows=1, cols=2, subplot_titles=(f"ROC at site {record.site}", "AUROC by layer"))
    dashes = dict(zip(record.scores, ("solid", "dash", "dot"), strict=False))
    table = record.by_site()
    for k, group in enumerate(record.harmful):
        for score in record.scores:
            tint, name = style.colour("", k), f"{group}: {score}"
            curve = record.roc(score, record.site, group)
            figure.add_scatter(
                x=list(curve.fpr),
                y=list(curve.tpr),
                name=name,
                legendgroup=name,
                line={"color": tint, "dash": dashes[score]},
                mode="lines",
                hovertemplate=f"{name}<br>AUROC {curve.auroc}<extra></extra>",
                row=1,
                col=1,
            )
            rows = table[(table["score"] == score) & (table["group"] == group)]
            figure.add_scatter(
                x=rows["site"].tolist(),
                y=rows["auroc"].tolist(),
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": (rows["high"] - rows["auroc"]).tolist(),
                    "arrayminus": (rows["auroc"] - rows["low"]).tolist(),
                    "thickness": 1,
                },
                name=name,
                legendgroup=name,
                showlegend=False,
                line={"color": tint, "dash": dashes[score]},
                mode="lines",
                row=1,
                col=2,
            )
    figure.add_scatter(
        x=[0, 1], y=[0, 1], line={"color": style.GREY, "dash": "dot"}, showlegend=False, mode="lines", row=1, col=1
    )
    figure.update_xaxes(title_text="false alarms on harmless prompts", row=1, col=1)
    figure.update_yaxes(title_text="harmful prompts found", row=1, col=1)
    figure.update_xaxes(title_text="resid_pre of layer (last: the end)", row=1, col=2)
    style.finish(figure, height=520)
    return figure.update_layout(legend={"y": -0.18, "yanchor": "top", "x": 0.5, "xanchor": "center"})


def paired_attention(patterns: Sequence[AttentionPatterns]) -> tuple[tuple[str, dict[str, Any]], ...]:
    """CircuitsVis' component and properties for one head, plain and suffixed, tokens aligned: the plain prompt gets an
    empty column for each suffix token, so that both views have the same axis."""
    plain, suffixed = patterns
    extra = len(suffixed.tokens) - len(plain.tokens)
    same = next(
        (i for i, (a, b) in enumerate(zip(plain.tokens, suffixed.tokens, strict=False)) if a != b), len(plain.tokens)
    )
    gap = slice(same, same + extra)
    n = len(suffixed.tokens)
    kept = torch.ones(n, dtype=torch.bool)
    kept[gap] = False
    values = torch.zeros(len(plain.heads), n, n, dtype=plain.values.dtype)
    index = kept.nonzero()[:, 0]
    values[:, index[:, None], index[None]] = plain.values
    tokens = tuple("·" if not k else t for k, t in zip(kept.tolist(), _spread(plain.tokens, same, extra), strict=True))
    aligned = AttentionPatterns(values, plain.heads, tokens, plain.prompt)
    return attention_props(aligned), attention_props(suffixed)


def attention_pair_view(patterns: Sequence[AttentionPatterns], element_id: str = "attention-pair") -> View:
    """Both in one CircuitsVis view: a head, plain and suffixed, on the same tokens."""
    (component, plain), (_, suffixed) = paired_attention(patterns)
    names = [f"{label}, {what}" for what in ("plain", "suffixed") for label in patterns[0].labels]
    attention = [*plain["attention"], *suffixed["attention"]]
    props = {"tokens": suffixed["tokens"], "attention": attention, "attentionHeadNames": names}
    return View(component, props, element_id)


def _spread(tokens: Sequence[str], at: int, extra: int) -> list[str]:
    return [*tokens[:at], *["·"] * extra, *tokens[at:]]


def _error(found: Sequence[Interval]) -> dict[str, Any]:
    def side(value: float) -> float:
        return 0.0 if value != value else value

    return {
        "type": "data",
        "symmetric": False,
        "array": [side(i.high - i.mean) for i in found],
        "arrayminus": [side(i.mean - i.low) for i in found],
    }
