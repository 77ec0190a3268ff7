"""The circuit of one suffix: its tokens -> heads -> direction -> refusal, each edge beside its control."""

from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from torch import Tensor

from ..errors import LabelError
from ..report import style
from ..report.claims import NOT_SHOWN, grade, grade_beyond, percent
from ..report.drawing import Drawing
from ..stats import Interval, benjamini_hochberg, columns, mean_interval, paired_p, rate
from .observation_records import SuffixResult
from .records import Investigation
from .shift_records import TARGETS, AttentionShift, explained

ALPHA = 0.05
TOKENS, DIRECTION, REFUSAL, OTHERS, MLPS = "token", "r̂", "refusal", "other heads", "MLPs and biases"
HEADINGS = ("suffix's tokens", "heads", "direction", "refusal")


def finding(result: SuffixResult) -> str:
    """Say in one sentence what a suffix does, graded by effect size, and which part of the split explains it."""
    stopped, random = result.universality, rate([not refused for refused in result.random.refusals])
    how = grade_beyond(stopped, random)
    said = f"{percent(stopped)} of the refusals are gone with it, {percent(random)} with random tokens: {how}"
    if how == NOT_SHOWN or result.shift is None or not result.shift.receivers:
        return f"{said}."
    shift, target = result.shift, TARGETS.index("suffix")
    parts = torch.stack([shift.parts[:, target, layer, head] for layer, head in shift.receivers]).mean(0)
    said += f"; {explained(parts, f'{len(shift.receivers)} heads (chosen on other prompts)')}"
    if result.curves is not None:
        stays = result.curves.stays()
        said += (
            f"; with all attention held as with random tokens, {percent(stays)} of its effect stays ({grade(stays)})"
        )
    return f"{said}."


def circuit(result: SuffixResult) -> pd.DataFrame:
    """Edges of a suffix's circuit.

    From a token to a head: attention that the head gives it beyond the random token in its place. From a head (or all
    others, or the MLPs and biases) to r̂: fall of what it writes along r̂ at the last position, from random tokens to the
    suffix; these add up to the fall of the projection at the end. From r̂ to refusal: share of the metric's drop that
    returns when r̂ is restored. ``shown``: the edge is beyond chance, by a paired test against random tokens (adjusted
    over all edges of its kind, Benjamini and Hochberg) or, for the last, by its interval above that of the placebo.

    Returns:
        One row per edge: source, target, value, low, high, p, shown, n.

    Raises:
        LabelError: why attention moves was not measured for this suffix.
    """
    if result.shift is None:
        raise LabelError("why attention moves was not measured for this suffix, so it has no circuit")
    return pd.DataFrame(_edges(result, result.shift))


def _tested(kind: str, rows: Sequence[tuple[str, str, Tensor]]) -> Iterator[dict[str, object]]:
    """Edges (source, target, value by prompt), each with its paired test."""
    values = [row.double().numpy() for *_, row in rows]
    p = benjamini_hochberg([paired_p(row) for row in values]).tolist() if rows else []
    for (source, target, _), row, chance in zip(rows, values, p, strict=True):
        yield _edge(kind, source, target, mean_interval(row), chance, chance < ALPHA)


def _edge(kind: str, source: str, target: str, found: Interval, p: float, shown: bool) -> dict[str, object]:
    edge = {"kind": kind, "source": source, "target": target, **columns(found, "value")}
    return {**edge, "p": p, "shown": shown, "n": found.n}


def _edges(result: SuffixResult, shift: AttentionShift) -> Iterator[dict[str, object]]:
    names = [(f"{i + 1}. {token}", head) for head in shift.receiver_labels for i, token in enumerate(shift.tokens)]
    yield from _tested(TOKENS, [(*name, row) for name, row in zip(names, shift.gained.flatten(0, 1), strict=True)])
    before, after = result.random, result.suffixed
    drops = before.heads - after.heads
    own = dict(zip(shift.receiver_labels, (drops[head] for head in shift.receivers), strict=True))
    mlps = sum(
        (getattr(before, x) - getattr(after, x)).reshape(-1, before.n).sum(0) for x in ("mlp", "attn_bias", "embed")
    )
    own |= {OTHERS: drops.sum((0, 1)) - sum(own.values()), MLPS: mlps}
    yield from _tested("head", [(name, DIRECTION, row) for name, row in own.items()])
    if result.causal is not None:
        found, placebo = (f("restore r̂") for f in (result.causal.recovered, result.causal.recovered_placebo))
        yield _edge("direction", DIRECTION, REFUSAL, found, float("nan"), found.low > max(placebo.high, 0.0))


def plot_circuit(record: SuffixResult | Investigation, result: SuffixResult | str | None = None) -> Drawing:
    """A suffix's tokens, the heads that turn to them, the direction and refusal: edges as wide as their effect within
    their column, orange towards the suffix's effect and blue against it; edges within chance are left out."""
    one = record.result(result) if isinstance(record, Investigation) else record
    frame = circuit(one)
    heads = frame.loc[frame["kind"] == "head", "source"].tolist()
    tokens = list(dict.fromkeys(frame.loc[frame["kind"] == TOKENS, "source"]))
    names = (tokens, heads, [DIRECTION], [REFUSAL])
    places = {name: (col, 1 - (i + 0.5) / len(some)) for col, some in enumerate(names) for i, name in enumerate(some)}
    figure, shown = Drawing(), frame[frame["shown"]]
    for _, edges in shown.groupby("kind", sort=False):
        largest, middle = float(edges["value"].abs().max()) or 1.0, []
        for edge in edges.to_dict("records"):
            (x0, y0), (x1, y1) = places[edge["source"]], places[edge["target"]]
            line = {"width": 1 + 11 * abs(edge["value"]) / largest}
            line["color"] = style.ORANGE if edge["value"] > 0 else style.BLUE
            look = {"mode": "lines", "opacity": 0.55, "hoverinfo": "skip"}
            figure.add_scatter(x=[x0, x1], y=[y0, y1], line=line, **look)
            number = f"{edge['value']:+.3f} [{edge['low']:+.3f}, {edge['high']:+.3f}], n = {edge['n']}"
            chance = "" if edge["p"] != edge["p"] else f"<br>adjusted p {edge['p']:.1g}"
            middle.append((x0 + 0.3, y0 + 0.3 * (y1 - y0), f"{edge['source']} → {edge['target']}<br>{number}{chance}"))
        x, y, texts = map(list, zip(*middle, strict=True))
        marker = {"size": 7, "color": style.GREY, "opacity": 0.5}
        hover = {"text": texts, "hovertemplate": "%{text}<extra></extra>"}
        figure.add_scatter(x=x, y=y, mode="markers", marker=marker, **hover)
    look = {"mode": "markers+text", "marker": {"size": 13, "color": style.GREY}, "hoverinfo": "skip"}
    sides = ("middle left", "top center", "top center", "middle right")
    for col, (side, some) in enumerate(zip(sides, names, strict=True)):
        y = [places[name][1] for name in some]
        figure.add_scatter(x=[col] * len(some), y=y, text=some, textposition=side, **look)
        figure.add_annotation(x=col, y=1, yref="paper", yanchor="bottom", text=HEADINGS[col], showarrow=False)
    figure.update_traces(showlegend=False).update_xaxes(visible=False, range=[-0.6, 3.4]).update_yaxes(visible=False)
    within = f"{len(frame) - len(shown)} edges within chance left out"
    title = f"From “{one.suffix.short(40)}” to refusal (n = {one.suffixed.n}; {within})"
    return style.finish(figure, title, max(420, 160 + 26 * max(len(tokens), len(heads))))
