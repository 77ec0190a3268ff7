"""Figures of many suffixes: strength and causes, recurring heads, clusters, and the split beside dominance."""

from typing import Any

from ..errors import LabelError
from ..records.base import figure as registered
from ..report import style
from ..report.drawing import Drawing
from .many_records import ManySuffixes
from .shift_records import PLAYERS

HEADS = 16  # of those that recur most
KINDS = (("attacks", "meant to stop refusals", style.ORANGE), ("controls", "benign or random", style.SKY))
CAUSES = dict(zip(PLAYERS, (style.BLUE, style.PINK, style.YELLOW), strict=True))


def _label(record: ManySuffixes, i: int) -> str:
    return f"{i + 1}. {record.suffixes[i].short(28)}"


@registered("suffixes", ManySuffixes)
def plot_many_suffixes(record: ManySuffixes) -> Drawing:
    """Strength of every suffix (drop of the metric) against its universality, and why the top heads turn to it."""
    frame, n = record.to_frame(), record.metric.shape[1]
    rho = record.strength_against_universality()
    note = "" if rho.mean != rho.mean else f": Spearman {rho.mean:.2f} [{rho.low:.2f}, {rho.high:.2f}]"
    titles = (f"strength and universality{note}", "attention of the top heads on it, by cause; strongest above")
    x, y = ("drop of the refusal metric", "attention, suffix minus random tokens"), ("prompts not refused",)
    figure = style.panels(titles, x, y, column_widths=[0.4, 0.6], horizontal_spacing=0.22)
    hover = "%{customdata[0]}<br>drop %{x:.2f} (spread over prompts %{customdata[1]:.2f})<br>not refused "
    hover += "%{y:.0%}: %{customdata[2]}<extra></extra>"
    for group, name, tint in KINDS:
        some = list(getattr(record, group))
        rows = frame.iloc[some]
        bars = {"error_x": style.error_bars(map(record.metric_drop, some))}
        bars["error_y"] = style.error_bars(map(record.stopped, some))
        texts = [[_label(record, i), frame["spread"][i], frame["grade"][i]] for i in some]
        marker = {"color": tint, "size": 9, "line": {"color": style.GREY, "width": 1}}
        look: dict[str, Any] = {"mode": "markers", "marker": marker, "customdata": texts, "hovertemplate": hover}
        figure.add_scatter(x=rows["metric_drop"], y=rows["not_refused"], name=name, **bars, **look, **style.panel(1))
    order = frame["metric_drop"].argsort().tolist()
    labels = [_label(record, i) for i in order]
    for player, tint in CAUSES.items():
        hover = f"%{{y}}, {player}: %{{x:+.3f}}<extra></extra>"
        look = {"marker_color": tint, "hovertemplate": hover, "orientation": "h", **style.panel(2)}
        figure.add_bar(x=frame[player].iloc[order].tolist(), y=labels, name=player, **look)
    figure.update_yaxes(tickformat=".0%", row=1, col=1).update_layout(barmode="relative")
    height = max(440, 200 + 15 * len(order))
    return style.finish(figure, f"{len(order)} suffixes beside random tokens (n = {n} prompts)", height)


@registered("recurrence", ManySuffixes)
def plot_recurrence(record: ManySuffixes, by: str = "attention", top: int | None = None) -> Drawing:
    """Shared part of two suffixes' top heads beside that of random heads of the same layers, and the heads that recur.

    Args:
        by: "attention" (gained by the suffix) or "write" (along r̂, lost).
    """
    found, heads = record.overlaps(by, top), record.recurring(by, top).head(HEADS)
    if not found:
        raise LabelError("heads can recur over two suffixes of a kind at least")
    titles = (f"shared part of their top {top or len(record.top_heads)} heads", "heads that recur")
    x, y = ("two suffixes", "head"), ("shared part", "share of suffixes")
    figure = style.panels(titles, x, y, horizontal_spacing=0.14)
    for name, which, tint, hatch in (
        ("suffixes", "found", style.ORANGE, ""),
        ("random heads of the same layers (95% range)", "chance", style.GREY, "/"),
    ):
        values, look = [getattr(pair, which) for pair in found.values()], style.bar(tint, hatch)
        hover = f"%{{x}}, {name}: %{{y:.2f}}<extra></extra>"
        style.add_bars(figure, tuple(found), values, name, marker=look, hovertemplate=hover, **style.panel(1))
    for (group, name, tint), of in zip(KINDS, ("of attacks", "of controls"), strict=True):
        share = (heads[group] / heads[of].clip(lower=1)).tolist()
        hover = f"%{{x}}: in %{{customdata[0]}} of %{{customdata[1]}} {group} (adjusted p %{{customdata[2]:.1g}})"
        more = {"customdata": heads[[group, of, "p"]].to_numpy().tolist(), "hovertemplate": f"{hover}<extra></extra>"}
        figure.add_bar(x=heads["head"].tolist(), y=share, name=name, marker_color=tint, **more, **style.panel(2))
    figure.update_layout(barmode="group").update_yaxes(range=[0, 1.05])
    return style.finish(figure, f"Do the same heads recur? (by {by}, n = {len(record.suffixes)} suffixes)", 460)


@registered("clusters", ManySuffixes)
def plot_clusters(record: ManySuffixes) -> Drawing:
    """Cosine between the profiles of every two suffixes (the causes of each head's change of attention), by cluster."""
    found = record.clusters()
    if found is None:
        raise LabelError("clusters need four suffixes at least")
    order = found.order.tolist()
    labels = [f"{_label(record, i)} [{found.labels[i]}]" for i in order]
    look = {**style.diverging(1.0, "cosine"), "hovertemplate": "%{y}<br>%{x}<br>cosine %{z:.2f}<extra></extra>"}
    figure = Drawing().add_heatmap(z=found.cosine[order][:, order].round(3).tolist(), x=labels, y=labels, **look)
    figure.update_xaxes(title_text="suffix [cluster]", tickangle=-50)
    figure.update_yaxes(title_text="suffix [cluster]", autorange="reversed")
    chance = f"shuffled {found.chance.mean:.2f} [{found.chance.low:.2f}, {found.chance.high:.2f}]"
    title = f"{found.labels.max()} clusters of {len(order)} suffixes (silhouette {found.silhouette:.2f}, {chance})"
    return style.finish(figure, title, max(520, 300 + 14 * len(order)))


@registered("beside dominance", ManySuffixes)
def plot_beside_dominance(record: ManySuffixes) -> Drawing:
    """Spearman's correlation over suffixes of each measure with the dominance score of Ben-Tov et al. 2025."""
    frame = record.beside_dominance()
    if frame.empty:
        raise LabelError("a correlation over suffixes needs three that differ")
    figure = Drawing()
    found, hover = style.intervals(frame, "spearman"), "%{x}: %{y:.2f}<extra></extra>"
    style.add_bars(figure, frame["measure"].tolist(), found, "Spearman", marker_color=style.BLUE, hovertemplate=hover)
    figure.add_hline(y=0, line_color=style.GREY)
    figure.update_yaxes(title_text="Spearman with dominance", range=[-1.1, 1.1]).update_xaxes(title_text="measure")
    figure.update_layout(showlegend=False)
    return style.finish(figure, f"Beside the dominance score (n = {len(record.suffixes)} suffixes, 95% intervals)", 420)
