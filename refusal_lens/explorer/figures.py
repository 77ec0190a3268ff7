"""Figures of a look: the map, heads by region, one head's pattern in four measures, source tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.views import thinned
from ..direction.figures import plot_conversation
from ..errors import LabelError
from ..records.base import figure as registered
from ..records.labels import REGIONS, head_label, index_of, visible
from ..report import style
from ..report.drawing import Drawing
from .records import Look

MEASURES = {
    "weight": "attention weight",
    "length": "weight × length of the value's write",
    "along": "weight × its write along r̂",
    "difference": "weight minus that with the random suffix",
}


@registered("map", Look)
def plot_look_map(record: Look, conditions: Sequence[str] | None = None, value: str = "projection") -> Drawing:
    """Every token by layer, plain and changed (or as given), white inside the range of random directions."""
    return plot_conversation(record.map, _pair(record, conditions), value)


@registered("heads", Look)
def plot_look_heads(record: Look, conditions: Sequence[str] | None = None) -> Drawing:
    """Attention of the top heads from the last token to each region, one panel per condition."""
    shown = _pair(record, conditions)
    titles, x, y = [style.readable(name) for name in shown], ["head"] * len(shown), ["attention from the last token"]
    figure = style.panels(titles, x, y, shared_yaxes=True, horizontal_spacing=0.04)
    for col, name in enumerate(shown, start=1):
        weights = record.sources[name].attention_by_region()[:, :, 0]
        values = {r: [float(weights[(*head, i)]) for head in record.top_heads] for i, r in enumerate(REGIONS)}
        labels = [head_label(*head) for head in record.top_heads]
        style.add_regions(figure, labels, values, showlegend=col == len(shown), **style.panel(col))
    figure.update_layout(barmode="stack").update_yaxes(range=[0, 1.02])
    return style.finish(figure, "Attention of the top heads by region", height=380)


@registered("pattern", Look)
def plot_look_pattern(record: Look, of: str = "weight", conditions: Sequence[str] | None = None) -> Drawing:
    """The picked head's pattern under two conditions on the same tokens (the plain request has no suffix: blank there).

    Args:
        of: "weight"; "length", weight times the length of what the source's value writes; "along", weight times its
            signed projection on r̂; "difference", the weight minus that with the random suffix of equal length.

    Raises:
        LabelError: another measure, or a difference without a suffix.
    """
    index_of(tuple(MEASURES), of, "measure", "a pattern")
    shown = _pair(record, conditions)
    if of == "difference":
        if "random_suffix" not in record.conditions:
            raise LabelError("the difference is to a random suffix of equal length: give a suffix")
        others = (name for name in shown if name not in ("baseline", "random_suffix"))
        shown = tuple(dict.fromkeys(["adversarial", *others]))
    grids = {name: _aligned(record, name, of) for name in shown}
    tokens = max((record.patterns[name].tokens for name in shown), key=len)
    signed = of in ("along", "difference")
    limit = max(float(grid.nan_to_num().abs().max()) for grid in grids.values()) or 1.0
    figure = style.panels([style.readable(name) for name in shown], shared_yaxes=True, horizontal_spacing=0.03)
    for col, grid in enumerate(grids.values(), start=1):
        small, labels, notice = thinned(grid.nan_to_num(), tokens)
        small = small.masked_fill(thinned(grid.isnan().float(), tokens)[0] > 0.5, float("nan"))
        words = [visible(label) for label in labels]
        z = [[None if v != v else float(f"{v:.4g}") for v in row] for row in small.tolist()]
        texts = [[f"{reader} ← {source}" for source in words] for reader in words]
        hover = "%{text}<br>%{z:.4f}<extra></extra>"
        look = {"coloraxis": "coloraxis", "hovertemplate": hover, "hoverongaps": False}
        figure.add_heatmap(z=z, text=texts, **look, **style.panel(col))
        ticks = {"tickvals": list(range(len(words))), "ticktext": words, "tickfont": {"size": 9}}
        plain = {"showgrid": False, "zeroline": False}
        figure.update_xaxes(**ticks, **plain, tickangle=-60, title_text="from", **style.panel(col))
        figure.update_yaxes(**ticks, **plain, autorange="reversed", **style.panel(col))
    figure.update_yaxes(title_text="read at", row=1, col=1)
    scale = {"colorscale": style.DIVERGING, "cmin": -limit} if signed else {"colorscale": style.SEQUENTIAL, "cmin": 0}
    figure.update_layout(coloraxis={**scale, "cmax": limit})
    title = f"{head_label(*record.head)}: {MEASURES[of]}" + (f" ({notice})" if notice else "")
    return style.finish(figure, title, height=min(800, 200 + 13 * len(words)))


@registered("sources", Look)
def plot_look_sources(record: Look, conditions: Sequence[str] | None = None) -> Drawing:
    """What each token writes along r̂ at the last token through all heads, by condition, on the same tokens."""
    shown, figure = _pair(record, conditions), Drawing()
    words = [visible(token) for token in max((record.sources[name].tokens[0] for name in shown), key=len)]
    for i, name in enumerate(shown):
        values = record.sources[name].of_prompt(0)
        places = _places(record, name, len(words))
        look = {"marker": style.marker(name, i), "hovertemplate": "%{text}: %{y:.3f}"}
        texts = [words[place] for place in places]
        figure.add_bar(x=places, y=values.tolist(), text=texts, textposition="none", name=style.readable(name), **look)
    ticks = {"tickvals": list(range(len(words))), "ticktext": words, "tickfont": {"size": 10}}
    figure.update_xaxes(**ticks, tickangle=-60, title_text="token").update_yaxes(title_text="written along r̂")
    figure.update_layout(barmode="group", bargap=0.15)
    return style.finish(figure, "What each token writes along r̂", height=380)


@registered("token", Look)
def plot_look_token(record: Look, token: int = -1, condition: str | None = None, top: int = 10) -> Drawing:
    """Through which heads one token writes along r̂ at the last token: the ``top`` ones by absolute size.

    Args:
        token: counted as in ``map.tokens`` of the condition.
        condition: the changed one if None.
    """
    name = record.changed if condition is None else condition
    source = record.sources[name]
    words = source.tokens[0]
    index = index_of(range(-len(words), len(words)), token, "token", "the prompt") % len(words)
    values = source.values[:, :, 0, index - len(words)]
    best = values.abs().flatten().topk(min(top, values.numel())).indices.tolist()
    heads = [divmod(i, values.shape[1]) for i in best]
    heights = [float(values[head]) for head in heads]
    tints = [style.RED if height > 0 else style.BLUE for height in heights]
    figure = Drawing().add_bar(x=[head_label(*head) for head in heads], y=heights, marker_color=tints)
    figure.update_xaxes(title_text="head").update_yaxes(title_text="written along r̂")
    return style.finish(figure, f"{visible(words[index])}: through which heads ({style.readable(name)})", height=330)


def _pair(record: Look, conditions: Sequence[str] | None) -> tuple[str, ...]:
    """The given conditions, checked; the plain and the changed one if None."""
    names = dict.fromkeys(("baseline", record.changed) if conditions is None else conditions)
    return tuple(record.conditions[index_of(record.conditions, name, "condition", "the look")] for name in names)


def _places(record: Look, condition: str, n: int) -> list[int]:
    """Where a condition's tokens stand among ``n`` of the conditions with a suffix."""
    own = len(record.sources[condition].tokens[0])
    begin = int(record.sources[condition].bounds[0, REGIONS.index("suffix"), 0])
    return [i if i < begin else i + n - own for i in range(own)]


def _aligned(record: Look, condition: str, of: str) -> Float[Tensor, "dest src"]:
    """A measure of the pattern on the tokens of the longest condition shown; NaN where there is nothing."""
    pattern = record.patterns[condition]
    found = {"length": pattern.length, "along": pattern.along}.get(of, pattern.values)
    assert found is not None
    grid = found[0].float()
    if of == "difference":
        grid = grid - record.patterns["random_suffix"].values[0].float()
    n = max(len(other.tokens) for other in record.patterns.values())
    places = torch.tensor(_places(record, condition, n))
    whole = torch.full((n, n), float("nan"))
    whole[places[:, None], places] = grid.masked_fill(torch.ones_like(grid).triu(1) > 0, float("nan"))
    return whole
