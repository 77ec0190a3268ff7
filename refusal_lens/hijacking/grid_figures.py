"""Figures of patching: a grid of cells, exact beside gradient; paths beside random senders."""

import torch
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from ..records.base import figure as registered
from ..records.labels import index_of
from ..report import style
from ..report.drawing import Drawing
from .grid_records import EFFECTS, VALUES, PatchingGrid, PathEffects


@registered("patching grid", PatchingGrid)
def plot_patching_grid(record: PatchingGrid) -> Drawing:
    """Each cell's share of the difference between both runs: metric and r̂ᵀx, by exact patches above the gradient."""
    grids = {"patched": record.effects}
    if record.estimate is not None:
        grids["by gradient"] = record.estimate
    titles = [f"{value}, {name}" for name in grids for value in VALUES]
    spacing = {"horizontal_spacing": 0.08, "vertical_spacing": 0.2}
    figure = Drawing(make_subplots(rows=len(grids), cols=2, subplot_titles=titles, **spacing))
    look = {**style.diverging(1.0, "share"), "hovertemplate": "layer %{y}, %{x}: %{z:.2f}<extra></extra>"}
    look |= {"x": list(record.places), "y": list(range(len(record.effects[0]))), "hoverongaps": False}
    for row, grid in enumerate(grids.values(), start=1):
        for col, value in enumerate(VALUES, start=1):
            z = [[None if v != v else round(v, 4) for v in line] for line in _shares(record, grid, value).tolist()]
            figure.add_heatmap(z=z, showscale=col == 2 and row == 1, **look, **style.panel(col, row))
    figure.update_xaxes(tickangle=-50).update_yaxes(title_text="layer", col=1)
    figure.update_xaxes(title_text="head" if record.site == "z" else "position and token", row=len(grids))
    title = f"{record.site} {record.way.replace('clean', record.clean)} run, cell by cell (n = {record.n})"
    return style.finish(figure, title, 300 * len(grids) + 80)


def _shares(
    record: PatchingGrid, grid: Float[Tensor, "value layer place prompt"], value: str
) -> Float[Tensor, "layer place"]:
    """Mean effect over the mean difference between both runs."""
    i = index_of(VALUES, value, "value", "PatchingGrid")
    whole = float((record.source[i] - record.into[i]).mean())
    return grid[i].mean(-1) / whole if whole else torch.full_like(grid[i].mean(-1), float("nan"))


@registered("paths", PathEffects)
def plot_path_effects(record: PathEffects) -> Drawing:
    """Each path's share of the difference between both runs, beside random senders: attention, metric and r̂ᵀx."""
    x, y = ["share of the difference"] * len(EFFECTS), ("path",)
    figure = style.panels(EFFECTS, x, y, shared_yaxes=True, horizontal_spacing=0.04)
    for col, effect in enumerate(EFFECTS, start=1):
        for name, random, tint in (("the path", False, style.GREEN), ("random senders", True, style.SKY)):
            found = [record.share(path, effect, random) for path in record.paths]
            look = {"legendgroup": name, "showlegend": col == 1, "marker": style.bar(tint, "/" if random else "")}
            look |= {"hovertemplate": "%{y}: %{x:.2f}<extra></extra>", "orientation": "h", **style.panel(col)}
            style.add_bars(figure, record.paths, found, name, **look)
    figure.update_yaxes(autorange="reversed").update_layout(barmode="group")
    title = f"Direct paths, {record.way.replace('clean', 'random')} run (n = {record.effects.shape[-1]})"
    return style.finish(figure, title, 180 + 60 * len(record.paths))
