"""Figures of suffixes: trace, heads, attention by region, split, ranking, tokens, causal tests, detectors."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from plotly.subplots import make_subplots

from ..data.suffixes import Suffix
from ..errors import LabelError
from ..records.base import figure as registered
from ..records.labels import REGIONS, visible
from ..report import style
from ..report.drawing import Drawing
from ..stats import mean_interval
from .causal_records import CausalTests
from .circuits import plot_circuit
from .curve_figures import plot_curves
from .detection import Detectors
from .grid_figures import plot_path_effects
from .many_figures import CAUSES
from .observation_records import Observation, SuffixResult, TokenEffects
from .probe_records import DETECTORS, DetectorComparison
from .records import Investigation
from .shift_records import AttentionShift

Which = SuffixResult | Suffix | str | None  # a suffix of the investigation; None: the strongest
PER_LINE = 12  # tokens of a suffix
TRACES = {
    "cosine": ("cosine with r̂", "last position"),
    "projection": ("projection on r̂", "last position"),
    "instruction_cosine": ("cosine with r̂", "instruction's last token"),
    "instruction_projection": ("projection on r̂", "instruction's last token"),
}


def conditions(attack: Investigation, result: SuffixResult) -> list[Observation]:
    """Plain, suffixed, random, shuffled, harmless: those that there are."""
    found = [attack.plain, result.suffixed, result.random, result.shuffled, attack.harmless]
    return [o for o in found if o is not None]


def suffix_label(index: int, suffix: Suffix) -> str:
    """How lists and clicks name a suffix."""
    return f"{index + 1}. {suffix.short()}"


def _is_control(condition: str) -> bool:
    return condition in ("random", "shuffled")


@registered("suffixes", Investigation)
def plot_suffix_ranking(attack: Investigation) -> Drawing:
    """Refusal metric of every suffix (mean and 95% interval over prompts), and strength against universality."""
    rho, p = attack.strength_against_universality()
    note = "strength and universality" if rho != rho else f"Spearman {rho:.2f} (p = {p:.1g})"
    titles = (f"all suffixes (n = {attack.plain.n})", note)
    x = ("refusal metric", "share of the top heads' write")
    y = ("rank", "share of instructions with metric < 0")
    figure = style.panels(titles, x, y, column_widths=[0.6, 0.4], horizontal_spacing=0.12)
    found = [mean_interval(row.tolist()) for row in attack.screened]
    strengths, universal = attack.screened_strength.mean(1).tolist(), attack.screened_universality()
    order = sorted(range(len(found)), key=lambda i: float(attack.screened[i].mean()))
    for is_attack, name, tint, shape in (
        (True, "meant to stop refusals", style.ORANGE, "circle"),
        (False, "benign or random", style.SKY, "diamond"),
    ):
        some = [i for i in order if attack.suffixes[i].is_attack == is_attack]
        labels = [suffix_label(i, attack.suffixes[i]) for i in some]
        look = {"color": tint, "size": 9, "symbol": shape, "line": {"color": style.GREY, "width": 1}}
        shared: dict[str, Any] = {"mode": "markers", "marker": look, "customdata": labels}
        shared |= {"name": name, "legendgroup": name}
        if some:
            hover = "%{customdata}<br>refusal metric %{x:.2f}<extra></extra>"
            bars, means = style.error_bars(found[i] for i in some), [found[i].mean for i in some]
            places = [order.index(i) + 1 for i in some]
            figure.add_scatter(x=means, y=places, error_x=bars, hovertemplate=hover, **style.panel(1), **shared)
            hover = "%{customdata}<br>share %{x:.2f}, metric below 0 on %{y:.0%}<extra></extra>"
            shared |= {"showlegend": False, "hovertemplate": hover, **style.panel(2)}
            figure.add_scatter(x=[strengths[i] for i in some], y=[universal[i].rate for i in some], **shared)
    figure.add_vline(x=0, line_dash="dot", line_color=style.GREY, row=1, col=1)
    figure.add_vline(x=float(attack.plain.metric.mean()), line_color=style.RED, annotation_text="plain", row=1, col=1)
    figure.update_yaxes(autorange="reversed", row=1, col=1).update_yaxes(range=[-0.05, 1.05], row=1, col=2)
    return style.finish(figure, "Suffixes by the refusal metric that they leave", max(420, 200 + 14 * len(order)))


@registered("trace by layer", Investigation)
def plot_suffix_trace(
    attack: Investigation, result: Which = None, values: Sequence[str] = ("cosine", "instruction_cosine")
) -> Drawing:
    """Cosine (or projection) by layer, mean over prompts with a band of one standard deviation (paper Fig. 5); one
    panel per position."""
    result = attack.result(result)
    titles, up = ([TRACES[value][i] for value in values] for i in (1, 0))
    layers = ["resid_pre of layer (last: final stream)"] * len(values)
    figure = style.panels(titles, layers, up, horizontal_spacing=0.1)
    for col, value in enumerate(values, start=1):
        for o in conditions(attack, result):
            grid = getattr(o, value)
            tint, place = style.colour(o.condition), style.panel(col)
            style.add_band(figure, grid, tint, 0.15, **place)
            line = {"color": tint, "width": 2, "dash": "dash" if _is_control(o.condition) else "solid"}
            look = {"mode": "lines", "line": line, "legendgroup": o.condition, "showlegend": col == 1, **place}
            x, y = list(range(len(grid))), grid.mean(-1).tolist()
            figure.add_scatter(x=x, y=y, name=f"{o.condition}, n = {o.n}", **look)
        figure.add_vline(x=attack.direction.layer, line_dash="dot", line_color=style.GREY, row=1, col=col)
    site = result.departure()
    if site is not None:
        look = {"line_dash": "dash", "line_color": style.ORANGE, "annotation_text": "departs from random"}
        figure.add_vline(x=site, row=1, col=1, **look)
    return style.finish(figure, f"Along r̂ by layer, with the suffix “{result.suffix.short(40)}”", height=460)


@registered("heads", Investigation)
def plot_suffix_heads(attack: Investigation, result: Which = None) -> Drawing:
    """What the top heads write along r̂ under each condition, with 95% intervals (paper Fig. 6a)."""
    result = attack.result(result)
    figure = Drawing(layout_barmode="group")
    shared = {
        "customdata": [float(result.p_heads[head]) for head in attack.top_heads],
        "hovertemplate": "%{x}: %{y:.3f}<br>suffix against random, adjusted p %{customdata:.2g}<extra></extra>",
    }
    for o in conditions(attack, result):
        found = [mean_interval(o.heads[head].tolist()) for head in attack.top_heads]
        marker = style.bar(style.colour(o.condition), "/" if _is_control(o.condition) else "")
        style.add_bars(figure, attack.head_labels, found, f"{o.condition}, n = {o.n}", marker=marker, **shared)
    figure.update_xaxes(title_text="head").update_yaxes(title_text="written along r̂")
    title = f"What the top heads (chosen on {len(attack.head_prompts)} other prompts) write"
    return style.finish(figure, f"{title}, with the suffix “{result.suffix.short(40)}”", height=420)


@registered("attention by region", Investigation)
def plot_attention_regions(attack: Investigation, result: Which = None, post: int = -1) -> Drawing:
    """Attention of the top heads from one post-instruction position, by region: one panel per condition (paper
    Fig. 6b); bars add up to 1."""
    result = attack.result(result)
    shown = [o for o in conditions(attack, result) if o.condition in ("plain", "random", "suffix")]
    figure = style.panels([f"{o.condition} (n = {o.n})" for o in shown], shared_yaxes=True)
    for col, o in enumerate(shown, start=1):
        values = {name: o.attention[:, post, :, i].mean(-1).tolist() for i, name in enumerate(REGIONS)}
        style.add_regions(figure, attack.head_labels, values, showlegend=col == len(shown), **style.panel(col))
    label = attack.post_labels[post] if len(attack.post_labels) >= -post else ""
    figure.update_yaxes(title_text=f"attention from position {post} {label}", range=[0, 1], col=1)
    figure.update_layout(barmode="stack").update_xaxes(title_text="head")
    return style.finish(figure, f"Where the top heads attend, with the suffix “{result.suffix.short(40)}”", height=450)


@registered("attention by position", Investigation)
def plot_attention_positions(attack: Investigation, result: Which = None) -> Drawing:
    """Attention to the suffix and to random tokens from every post-instruction position, by top head."""
    result = attack.result(result)
    figure = style.panels(["suffix", "random tokens"], shared_yaxes=True)
    region = REGIONS.index("suffix")
    for col, o in enumerate((result.suffixed, result.random), start=1):
        z = o.attention[..., region].mean(-1)
        n = z.shape[1]
        labels = [f"{text} ({i - n})" for i, text in enumerate(attack.post_labels)] or [str(i - n) for i in range(n)]
        look = {"zmin": 0, "zmax": 1, "colorscale": style.SEQUENTIAL, "colorbar": {"title": "attention"}}
        look |= {"showscale": col == 2, "hovertemplate": "%{y} from %{x}: %{z:.3f}<extra></extra>"}
        figure.add_heatmap(z=z.tolist(), x=labels, y=list(attack.head_labels), **look, **style.panel(col))
    figure.update_xaxes(title_text="attention from").update_yaxes(autorange="reversed")
    figure.update_yaxes(title_text="head", col=1)
    return style.finish(figure, f"Attention to the suffix “{result.suffix.short(40)}” and to random tokens", height=390)


@registered("split of the drop", Investigation)
def plot_split(attack: Investigation, result: Which = None, against: str = "random") -> Drawing:
    """Each top head's drop from the condition ``against`` ("random" or "plain"), split into attention moved and values
    changed, which add up to it."""
    result = attack.result(result)
    split = result.from_random if against == "random" else result.from_plain
    figure = Drawing(layout_barmode="relative")
    parts = (("attention moved", split.moved, "moved"), ("values changed", split.changed, "changed"))
    for name, grid, part in parts:
        found = [mean_interval(grid[head].tolist()) for head in attack.top_heads]
        hover = f"%{{x}}, {name}: %{{y:.3f}}<extra></extra>"
        style.add_bars(figure, attack.head_labels, found, name, marker_color=style.colour(part), hovertemplate=hover)
    drops = [float(split.drop[head].mean()) for head in attack.top_heads]
    look = {"symbol": "diamond", "size": 9, "color": style.GREY}
    figure.add_scatter(x=list(attack.head_labels), y=drops, name="whole drop", mode="markers", marker=look)
    figure.update_xaxes(title_text="head").update_yaxes(title_text=f"drop along r̂ from {against}")
    return style.finish(figure, f"Each head's drop, split (n = {split.moved.shape[-1]})", height=420)


@registered("parts of the drop", Investigation)
def plot_drop_waterfall(attack: Investigation, result: Which = None, site: int | None = None) -> Drawing:
    """The drop of the projection at the last position from plain to suffixed, part by part: attention by region of its
    sources, attention bias, MLPs."""
    result = attack.result(result)
    table = attack.drop_parts(result, site)
    parts = table[(table["part"] != "total") & (table["mean"].abs() > 0)]
    total = ("whole drop", float(table.loc[table["part"] == "total", "mean"].iloc[0]))
    names = [style.readable(name) for name in parts["part"]]
    unit = "drop along r̂ from plain to suffixed"
    figure = style.waterfall(names, parts["mean"].tolist(), total, style.ORANGE, unit)
    figure.update_xaxes(tickangle=-30)
    where = attack.direction.layer if site is None else site
    title = f"Where the drop comes from, up to resid_pre of layer {where} (n = {attack.plain.n})"
    return style.finish(figure, title, height=440)


@registered("tokens", TokenEffects)
def plot_token_effects(record: TokenEffects) -> Drawing:
    """The suffix token by token: how much of the refusal metric returns when it is left out, above what the top
    heads take from it along r̂."""
    n, prompts = record.removed.shape
    titles = (f"metric recovered without it (n = {prompts})", "written along r̂")
    names, count = [visible(token) for token in record.tokens], -(-n // PER_LINE)
    figure = Drawing(make_subplots(rows=2, cols=1, subplot_titles=titles, vertical_spacing=0.25 / count))
    for row, grid in ((1, record.removed), (2, record.written)):
        values = grid.mean(-1).tolist()
        texts = [f"{name}<br>{value:.2f}" for name, value in zip(names, values, strict=True)]
        figure.add_trace(style.token_strip(texts, values, width=min(n, PER_LINE)), **style.panel(1, row))
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, autorange="reversed")
    return style.finish(figure, "The suffix, token by token", height=180 + 110 * count)


@registered("causal tests", CausalTests)
def plot_causal_tests(record: CausalTests) -> Drawing:
    """Share of the drop that each test brings back (reverse tests: causes), beside random heads and placebo."""
    names = [t.name for t in record.tests]
    figure = Drawing(layout_barmode="group")
    for label, of, kind, hatch in (
        ("the test's heads", record.recovered, "heads", ""),
        ("random heads of the same layers", record.recovered_random, "random_heads", "/"),
        ("norm-matched placebo", record.recovered_placebo, "placebo", "x"),
    ):
        look, hover = style.bar(style.colour(kind), hatch), "%{x}: %{y:.2f}<extra></extra>"
        style.add_bars(figure, names, [of(name) for name in names], label, marker=look, hovertemplate=hover)
    figure.add_hline(y=1, line_dash="dot", line_color=style.GREY)
    figure.update_xaxes(tickangle=-30, title_text="test").update_yaxes(title_text="share of the drop recovered")
    return style.finish(figure, f"Is it the cause? (n = {len(record.plain)})", height=520)


@registered("why attention moves", AttentionShift)
def plot_attention_shift(record: AttentionShift, target: str = "suffix") -> Drawing:
    """Each receiver's change of attention on the target, by cause, beside the compositions with the largest parts."""
    n, heads = record.parts.shape[-1], record.receiver_labels
    titles = (f"attention on the {target}, by cause", "what wrote the scores")
    x, y = ("head", "part of the change"), ("suffix minus random tokens",)
    figure = style.panels(titles, x, y, horizontal_spacing=0.3)
    for player, tint in CAUSES.items():
        found = [record.part(player, head, target) for head in record.receivers]
        hover = f"%{{x}}, {player}: %{{y:+.3f}}<extra></extra>"
        style.add_bars(figure, heads, found, player, marker_color=tint, hovertemplate=hover, **style.panel(1))
    changes = record.to_frame(target)["change"].tolist()
    look = {"symbol": "diamond", "size": 9, "color": style.GREY}
    figure.add_scatter(x=list(heads), y=changes, name="whole change", mode="markers", marker=look, **style.panel(1))
    paths = record.compositions(target)
    if len(paths):
        look = {"marker_color": style.GREEN, "showlegend": False, "hovertemplate": "%{y}: %{x:+.3f}<extra></extra>"}
        bars = style.error_bars(style.intervals(paths, "part"))
        parts, labels = paths["part"].tolist(), paths["path"].tolist()
        figure.add_bar(x=parts, y=labels, error_x=bars, orientation="h", **look, **style.panel(2))
    figure.update_layout(barmode="relative").update_yaxes(autorange="reversed", row=1, col=2)
    return style.finish(figure, f"Why attention moves (n = {n})", height=460)


@registered("detectors", Detectors, Investigation)
def plot_roc(record: Detectors | Investigation) -> Drawing:
    """ROC of each detector and harmful group at r̂'s layer, and AUROC by layer with 95% bands."""
    if isinstance(record, Investigation):
        if record.detectors is None:
            raise LabelError("no detectors were measured: they need harmless prompts")
        record = record.detectors
    x = ("false positive rate (harmless prompts)", "resid_pre of layer (last: final stream)")
    y = ("true positive rate (harmful prompts)",)
    figure = style.panels((f"ROC at site {record.site}", "AUROC by layer"), x, y)
    dashes = dict(zip(record.scores, ("solid", "dash", "dot"), strict=False))
    table = record.by_site()
    for (k, group), score in itertools.product(enumerate(record.harmful), record.scores):
        name, curve = f"{group}: {score}", record.roc(score, record.site, group)
        line = {"color": style.colour("", k), "dash": dashes[score]}
        shared = {"name": name, "legendgroup": name, "mode": "lines", "line": line}
        hover = f"{name}<br>AUROC {curve.auroc}<extra></extra>"
        figure.add_scatter(x=curve.fpr, y=curve.tpr, hovertemplate=hover, **style.panel(1), **shared)
        rows = table[(table["score"] == score) & (table["group"] == group)]
        bars = style.error_bars(style.intervals(rows, "auroc"), thickness=1)
        more = {"error_y": bars, "showlegend": False, **style.panel(2), **shared}
        figure.add_scatter(x=rows["site"].tolist(), y=rows["auroc"].tolist(), **more)
    chance = {"color": style.GREY, "dash": "dot"}
    figure.add_scatter(x=[0, 1], y=[0, 1], line=chance, showlegend=False, mode="lines", row=1, col=1)
    return style.finish(figure, "Detecting harmful prompts by the direction", height=550)


@registered("comparison", DetectorComparison)
def plot_detectors(record: DetectorComparison) -> Drawing:
    """AUROC and share detected of each detector by test, and AUROC on validation prompts by layer; 95% intervals."""
    detected = f"detected at {record.false_alarms:.0%} false alarms"
    titles, x = ("AUROC", detected, "AUROC by layer (validation)"), ("test prompts", "test prompts", "layer")
    figure = style.panels(titles, x, horizontal_spacing=0.07)
    tests = [name.replace(" tokens", "<br>tokens") for name, *_ in record.tests]
    for i, name in enumerate(DETECTORS):
        look = {"legendgroup": name, "marker": style.marker(name, i)}
        areas = [record.auroc(name, test) for test, *_ in record.tests]
        style.add_bars(figure, tests, areas, name, **look, **style.panel(1))
        shares = [record.flagged(name, harmful) for _, harmful, _ in record.tests]
        style.add_bars(figure, tests, shares, name, showlegend=False, **look, **style.panel(2))
        line = {"color": style.colour(name, i), "dash": style.dash(name)}
        more = {"mode": "lines", "line": line, "name": name, "legendgroup": name, "showlegend": False}
        figure.add_scatter(y=record.validation[i].tolist(), **more, **style.panel(3))
    figure.update_yaxes(range=[0, 1.05]).update_yaxes(tickformat=".0%", row=1, col=2).update_layout(barmode="group")
    n = ", ".join(f"{record.groups.count(g)} {g}" for g in ("harmful", "harmless"))
    return style.finish(figure, f"Detectors of harmful prompts (n = {n}; 95% intervals)", height=520)


def _register_part(kind: str, draw: Callable[[Any], Drawing], part: str) -> None:
    """Let a suffix's result and an investigation draw one of their parts, if it was measured."""

    @registered(kind, SuffixResult, Investigation)
    def drawn(record: SuffixResult | Investigation, result: Which = None) -> Drawing:
        found = getattr(record.result(result) if isinstance(record, Investigation) else record, part)
        if found is None:
            raise LabelError(f"no {kind} were measured for this suffix, so there is nothing to draw")
        return draw(found)


registered("circuit", SuffixResult, Investigation)(plot_circuit)
_register_part("causal tests", plot_causal_tests, "causal")
_register_part("tokens", plot_token_effects, "tokens")
_register_part("number of heads", plot_curves, "curves")
_register_part("number of compositions", plot_curves, "path_curves")
_register_part("why attention moves", plot_attention_shift, "shift")
_register_part("paths", plot_path_effects, "paths")
