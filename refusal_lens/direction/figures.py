"""Figures of the direction: selection grid, trace by layer, stability, transfer, fine-tuning."""

from collections.abc import Sequence

from plotly.subplots import make_subplots

from ..records.base import figure as registered
from ..records.direction import Direction
from ..records.labels import visible
from ..records.stream import MASSIVE
from ..report import style
from ..report.drawing import Drawing
from .dose_records import DoseResponse
from .effect_records import ALONG, AblationForms, EffectMatrix, FineTuning, SystemPrompts
from .harm_records import READINGS, HarmMap
from .map_records import ConversationMap
from .records import CandidateDirections, DirectionTrace, FoundDirection, Selection, Stability


@registered("resamples won", Stability)
def plot_stability(record: Stability) -> Drawing:
    """How often each candidate wins over bootstrap resamples, and the cosine between every two winners."""
    figure = style.panels(("share of resamples won", "cosine between winners"), ("candidate", "resample: winner"))
    wins = record.wins
    tints = [style.GREEN if label == record.reference.label else style.GREY for label in wins]
    style.add_bars(figure, list(wins), list(wins.values()), "", marker_color=tints, showlegend=False, **style.panel(1))
    if record.winners:
        labels = [f"{i}: {w.label}" for i, w in enumerate(record.winners)]
        look = {"hovertemplate": "%{x} and %{y}: %{z:.3f}<extra></extra>", **style.diverging(1), **style.panel(2)}
        figure.add_heatmap(z=record.cosines.tolist(), x=labels, y=labels, **look)
    figure.update_yaxes(tickformat=".0%", range=[0, 1.05], row=1, col=1)
    return style.finish(figure, "Which candidate wins when the training prompts are resampled", height=420)


@registered("by step", FineTuning)
def plot_fine_tuning(record: FineTuning) -> Drawing:
    """Refusal rates under the old direction, and its cosine with the tuned model's own, by optimizer steps."""
    titles = ("harmful prompts refused", "harmless prompts refused", "cosine with the tuned model's own")
    figure = style.panels(titles)
    for col, rates in enumerate((record.harmful, record.harmless), start=1):
        for i, condition in enumerate(rates[0]):
            line = {"color": style.colour(condition, i), "dash": style.dash(condition)}
            look = {"line": line, "legendgroup": condition, "showlegend": col == 1 or condition != "baseline"}
            found = [row[condition] for row in rates]
            style.add_line(figure, record.steps, found, style.readable(condition), **look, **style.panel(col))
        figure.update_yaxes(tickformat=".0%", range=[-0.05, 1.05], row=1, col=col)
    look = {"mode": "lines+markers", "line": {"color": style.GREEN}, "showlegend": False}
    figure.add_scatter(x=list(record.steps), y=list(record.cosine), **look, **style.panel(3))
    figure.update_yaxes(range=[-0.05, 1.05], row=1, col=3)
    figure.update_xaxes(title_text="optimizer steps")
    return style.finish(figure, "The old direction in a model fine-tuned on harmless data", height=420)


@registered("matrix", EffectMatrix)
def plot_effects(record: EffectMatrix) -> Drawing:
    """Change in each ground's metric under each direction, and under random directions."""
    figure = style.panels((record.effect, "random directions"), shared_yaxes=True)
    limit = max(abs(i.mean) for grid in (record.change, record.control) for row in grid for i in row) or 1.0
    for col, grid in enumerate((record.change, record.control), start=1):
        look = {"x": list(record.grounds), "y": list(record.directions), "showscale": col == 2}
        style.add_cells(figure, grid, **look, **style.diverging(limit), **style.panel(col))
    figure.update_yaxes(title_text="direction", col=1).update_xaxes(title_text="metric on")
    return style.finish(figure, f"Change in each metric under {record.effect} of each direction", height=420)


@registered("by system prompt", SystemPrompts)
def plot_system_prompts(record: SystemPrompts) -> Drawing:
    """Refusal rates by system prompt, one group each (paper appendix F.2)."""
    names = [(system[:40] + "…" if len(system) > 40 else system) or "(none)" for system in record.systems]
    return style.plot_refusal_rates(dict(zip(names, record.rates, strict=True)), "Refusal rates by system prompt")


_SCORES = {
    "bypass": "bypass: refusal metric on<br>harmful prompts, ablated",
    "induce": "induce: refusal metric on<br>harmless prompts, added",
    "kl": "next-token KL on<br>harmless prompts, ablated",
}


@registered("scores by layer", Selection, FoundDirection)
def plot_selection(selection: Selection | FoundDirection, pos_labels: Sequence[str] = ()) -> Drawing:
    """The three scores by layer, one line per position, thresholds dashed, the chosen candidate starred (paper
    appendix C)."""
    if isinstance(selection, FoundDirection):
        pos_labels, selection = pos_labels or selection.candidates.pos_labels, selection.selection
    figure = style.panels(list(_SCORES.values()), horizontal_spacing=0.07)
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
            token, tint = f" {pos_labels[i]}" if i < len(pos_labels) else "", style.colour("", i)
            hover = f"position {pos}{token}, layer %{{x}}<br>{name} %{{y:.3f}}<br>%{{customdata}}<extra></extra>"
            figure.add_scatter(
                x=list(range(n_layers)),
                y=[None if v != v else v for v in grid[i].tolist()],
                customdata=[reason or "kept" for reason in selection.reasons[i]],
                **{"name": f"{pos}{token}", "legendgroup": str(pos), "showlegend": col == 1, "hovertemplate": hover},
                **{"mode": "lines+markers", "marker": {"size": 5, "color": tint}, "line": {"color": tint}},
                **style.panel(col),
            )
        label, value = limits[name]
        figure.add_hline(y=value, line_dash="dash", line_color=style.GREY, annotation_text=label, row=1, col=col)
        if cut < n_layers:
            figure.add_vline(x=cut - 0.5, line_dash="dot", line_color=style.GREY, row=1, col=col)
        star = {"symbol": "star", "size": 16, "color": style.RED, "line": {"width": 1, "color": "white"}}
        look = {"mode": "markers", "marker": star, "legendgroup": "chosen", "showlegend": col == 1, **style.panel(col)}
        place = {"x": [selection.chosen.layer], "y": [selection.score(name)]}
        figure.add_scatter(name=f"chosen {selection.chosen.label}", **place, **look)
    figure.update_xaxes(title_text="layer")
    return style.finish(figure, f"Scores of every candidate direction; chosen: {selection.chosen.label}", height=480)


@registered("by layer", DirectionTrace)
def plot_trace(trace: DirectionTrace, value: str = "cosine") -> Drawing:
    """Cosine (or projection) of the last position with r̂ by layer, mean over prompts and a band of one SD
    (paper Fig. 5)."""
    figure = Drawing()
    grid = getattr(trace, value)
    for i, condition in enumerate(trace.conditions):
        tint, means = style.colour(condition, i), grid[i].mean(-1).tolist()
        style.add_band(figure, grid[i], tint, 0.18)
        look = {"mode": "lines+markers", "line": {"color": tint, "width": 2, "dash": style.dash(condition)}}
        figure.add_scatter(x=list(range(len(means))), y=means, name=style.readable(condition), **look)
    if trace.direction is not None:
        figure.add_vline(x=trace.direction.layer, line_dash="dot", line_color=style.GREY, annotation_text="layer of r")
    figure.update_xaxes(title_text="resid_pre of layer (last: final stream)")
    figure.update_yaxes(title_text="cosine with r̂" if value == "cosine" else "projection on r̂")
    return style.finish(figure, f"The last position along r̂, by layer (mean ± SD, n = {grid.shape[-1]})")


FORM_NAMES = {"direction": "the direction", "random": "random directions", "matched": "equal moves, random directions"}


@registered("forms", AblationForms)
def plot_forms(record: AblationForms) -> Drawing:
    """Metric, KL and refusals of every form of ablation, beside its placebos and the baseline."""
    titles = ["refusal metric,<br>harmful prompts", "KL of the next token,<br>harmless prompts"]
    titles += ["harmful prompts refused<br>in replies"] if record.refused is not None else []
    figure = style.panels(titles)
    for along in ALONG:
        some = [record.effect(form, along) for form in record.forms]
        for col, name in enumerate(("harmful", "kl", "refused")[: len(titles)], start=1):
            values = [getattr(e, name) for e in some]
            marker = style.bar(style.colour(along), "" if along == "direction" else "/")
            look = {"marker": marker, "legendgroup": along, "showlegend": col == 1, **style.panel(col)}
            style.add_bars(figure, record.forms, values, FORM_NAMES[along], **look)
    lines = [(1, record.harmful.mean, "baseline"), (2, record.max_kl, "threshold")]
    lines += [(3, record.refused.mean, "baseline")] if record.refused is not None else []
    for col, value, label in lines:
        figure.add_hline(y=value, line_dash="dash", line_color=style.GREY, annotation_text=label, row=1, col=col)
    figure.update_xaxes(title_text="form of ablation")
    return style.finish(figure, f"Forms of ablation beside their placebos (n = {record.harmful.n})", height=450)


@registered("massive", CandidateDirections)
def plot_massive(candidates: CandidateDirections, direction: Direction | None = None) -> Drawing:
    """Energy of the stream and of r by coordinate, at the direction's layer (the middle by default), and the massive
    tokens; of r alone for candidates of an older version, which have no statistics of the stream.
    """
    found = candidates.statistics
    tokens = found.tokens[:10] if found else ()
    pos, layer = (direction.pos, direction.layer) if direction else (-1, candidates.n_layers // 2)
    x = ("number of coordinates, largest first", "token" if tokens else "none")
    axes = x, ("share of squared length", "norm over its sequence's median")
    figure = style.panels(["energy in the largest coordinates", "massive tokens"], *axes, column_widths=[0.6, 0.4])
    curves = [(f"r at ({pos}, {layer})", candidates.energy(pos, layer), style.colour("direction"))]
    if found is not None:
        stream = found.size[layer].square().sort(descending=True).values
        curves.insert(0, (f"stream, layer {layer}", stream / stream.sum(), style.GREY))
    for name, shares, tint in curves:
        held = shares.cumsum(0).tolist()
        hover = "%{y:.1%} in %{x} coordinates<extra>" + name + "</extra>"
        look = {"mode": "lines", "line_color": tint, "hovertemplate": hover, **style.panel(1)}
        figure.add_scatter(x=list(range(1, len(held) + 1)), y=held, name=name, **look)
    hover = "%{x} (id %{customdata[1]}), layer %{customdata[0]}: %{y:.3g} medians<extra></extra>"
    figure.add_bar(
        x=[f"{i}: {visible(token.text)}" for i, token in enumerate(tokens, start=1)],
        y=[token.ratio for token in tokens],
        customdata=[[token.layer, token.id] for token in tokens],
        **{"hovertemplate": hover, "marker_color": style.GREY, "showlegend": False, **style.panel(2)},
    )
    figure.add_hline(y=MASSIVE, line_dash="dash", line_color=style.GREY, row=1, col=2)
    figure.update_xaxes(type="log", col=1).update_yaxes(tickformat=".0%", range=[0, 1.05], col=1)
    figure.update_yaxes(rangemode="tozero", col=2)
    return style.finish(figure, f"Massive activations at layer {layer}", height=430)


@registered("harm", HarmMap)
def plot_harm(record: HarmMap) -> Drawing:
    """Projections of test prompts on harm and refusal; by layer, AUROC of harm on validation prompts and cosine."""
    axes = ("projection on harm", "layer"), ("projection on refusal", "AUROC, cosine")
    figure = style.panels(["test prompts", "by layer"], *axes, column_widths=[0.6, 0.4])
    for i, name in enumerate(("harmful", "harmless", *record.suffixes)):
        tint = style.colour(name, i)
        for refused, word in ((True, "refused"), (False, "answered")):
            x, y = (record.values(reading, name, refused) for reading in READINGS[:2])
            look = {"mode": "markers", "marker": {"color": tint, "size": 7, "symbol": "x" if refused else "circle"}}
            if x:
                figure.add_scatter(x=x, y=y, name=f"{name}, {word}", **look, **style.panel(1))
    layers = list(range(len(record.cosines)))
    style.add_line(figure, layers, record.validation, "AUROC of harm", line_color=style.RED, **style.panel(2))
    line = {"color": style.GREY, "dash": "dot"}
    name, cosines = "cosine of harm and refusal", record.cosines.tolist()
    figure.add_scatter(x=layers, y=cosines, name=name, mode="lines+markers", line=line, **style.panel(2))
    return style.finish(figure, f"Harmfulness and refusal (n = {len(record.sets)} prompts)", height=500)


_DOSE_PANELS = {
    "metric": "refusal metric",
    "refused": "refused",
    "readable": "refused in readable text",
    "degenerate": "degenerate replies",
    "kl": "KL on replies to<br>the other kind",
}
_DOSES = {"ablation": "share removed", "addition": "multiples of r", "capping": "ceiling (0 harmless, 1 harmful)"}


@registered("by strength", DoseResponse)
def plot_dose_response(record: DoseResponse, effect: str = "") -> Drawing:
    """Metric, shares and KL of one effect (the first by default) by strength, one colour per scope, random directions
    dashed. Refusals count under addition only in readable text."""
    effect = effect or record.effects[0]
    every = zip(record.strengths, record.doses, record.dose_effects, strict=True)
    doses = sorted((strength, dose) for strength, dose, own in every if own == effect)
    left = "refused" if effect == "addition" else "readable"
    panels = {measure: title for measure, title in _DOSE_PANELS.items() if measure != left}
    figure = style.panels(list(panels.values()), horizontal_spacing=0.06)
    for col, measure in enumerate(panels, start=1):
        for i, scope in enumerate(record.scopes):
            for condition in ("direction", "random"):
                points = {x: record.found(scope, dose, condition, measure) for x, dose in doses}
                points = {x: point for x, point in points.items() if point.n}
                real, line = condition == "direction", {"color": style.colour("", i), "dash": style.dash(condition)}
                look = {"line": line, "legendgroup": scope, "showlegend": col == 1 and real, **style.panel(col)}
                name = scope if real else f"{scope}, random"
                style.add_line(figure, list(points), list(points.values()), name, **look)
        figure.add_hline(y=record.before(effect, measure).mean, line_dash="dot", line_color=style.GREY, row=1, col=col)
        if measure not in ("metric", "kl"):
            figure.update_yaxes(tickformat=".0%", range=[-0.05, 1.05], row=1, col=col)
    figure.update_xaxes(title_text=_DOSES.get(effect, "strength"), range=[doses[0][0] - 0.1, doses[-1][0] + 0.1])
    n = record.before(effect, "refused").n
    return style.finish(figure, f"{effect.capitalize()} by strength and scope (n = {n}; dashed: random)", height=460)


@registered("by layer and token", ConversationMap)
def plot_conversation(
    record: ConversationMap, conditions: Sequence[str] | None = None, value: str = "projection", band: bool = True
) -> Drawing:
    """Every token of a conversation by layer, one map per condition, white inside the range of the random directions.

    Args:
        conditions: some of the record's; all if None.
        value: "projection" or "cosine".
        band: whether to leave that range white.
    """
    places, grid = record.shown(conditions), getattr(record, value)
    grid = grid.masked_fill(record.outside() == 0, 0) if band else grid
    names, inner, gap = [style.readable(record.conditions[i]) for i in places], 16 * grid.shape[1], 110
    height = inner * len(names) + gap * (len(names) - 1)
    spacing = gap / height if len(names) > 1 else 0
    figure = Drawing(make_subplots(rows=len(names), cols=1, subplot_titles=names, vertical_spacing=spacing))
    for row, i in enumerate(places, start=1):
        columns = _placed(record, i)
        drawn = style.layer_map(grid[i, :, : len(columns)], columns, "x · r̂" if value == "projection" else "cosine")
        figure.add_trace(drawn.update(coloraxis="coloraxis"), row=row, col=1)
        ticks = {"tickvals": list(range(len(columns))), "ticktext": [visible(t) for t in record.tokens[i]]}
        figure.update_xaxes(**ticks, tickangle=-60, showgrid=False, row=row, col=1)
    seen = grid[places].abs().flatten()
    limit = float(seen[seen > 0].quantile(0.98)) if bool((seen > 0).any()) else 1.0  # as in ``layer_map``, of all
    figure.update_layout(coloraxis={"colorscale": style.DIVERGING, "cmin": -limit, "cmax": limit})
    figure.update_yaxes(title_text="layer", type="category").update_xaxes(title_text="token", row=len(names), col=1)
    what = "Every token along r̂" + (" (white: within the range of random directions)" if band else "")
    return style.finish(figure, what, height=height + 160)


def _placed(record: ConversationMap, i: int) -> list[str]:
    """Tokens of a condition, each with its region."""
    return [f"{visible(t)} ({region})" for t, region in zip(record.tokens[i], record.regions[i], strict=True)]


@registered("by token", ConversationMap)
def plot_conversation_lines(
    record: ConversationMap, layer: int | None = None, conditions: Sequence[str] | None = None
) -> Drawing:
    """Projection of every token at a layer, one line per condition, with the range of the random directions as a band
    (that of the first condition shown).

    Args:
        layer: the direction's own if None.
        conditions: some of the record's; all if None.
    """
    places, layer, figure = record.shown(conditions), record.layer_of(layer), Drawing()
    band = range(len(record.tokens[places[0]]))
    low, high = (grid[places[0], layer, : len(band)].tolist() for grid in (record.low, record.high))
    look = {"fill": "toself", "fillcolor": style.faded(style.colour("random"), 0.35), "line": {"width": 0}}
    look |= {"hoverinfo": "skip", "mode": "lines", "name": "random directions"}
    figure.add_scatter(x=[*band, *band[::-1]], y=high + low[::-1], **look)
    for i in places:
        name, y = record.conditions[i], record.projection[i, layer, : len(record.tokens[i])].tolist()
        look = {"mode": "lines+markers", "line": {"color": style.colour(name, i), "dash": style.dash(name)}}
        look |= {"text": _placed(record, i), "hovertemplate": "%{text}<br>%{y:.3f}"}
        figure.add_scatter(x=list(range(len(y))), y=y, name=style.readable(name), **look)
    figure.update_xaxes(title_text="token").update_yaxes(title_text="projection on r̂")
    return style.finish(figure, f"Every token along r̂ at layer {layer}")
