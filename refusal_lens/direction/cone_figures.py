"""Figures of learned directions and cones, of subspaces by dimension, of independence and of groups."""

from ..records.base import figure as registered
from ..report import style
from ..report.drawing import Drawing
from .cone_records import MEASURES, PARTS, GroupAngles, Independence, LearnedCones, SubspaceEffects

_PANELS = {
    "bypass": "metric, harmful:<br>first k ablated",
    "middle": "metric, harmful:<br>middle of k ablated",
    "weakest": "metric, harmful:<br>weakest inside k ablated",
    "induce": "metric, harmless:<br>k-th added",
    "kl": "KL, harmless:<br>first k ablated",
    "refused": "harmful refused:<br>first k ablated",
}


@registered("training", LearnedCones)
def plot_learning(record: LearnedCones) -> Drawing:
    """Loss by step and part, mean over seeds, and the validation loss of each seed, the kept state starred."""
    figure = style.panels(("training loss by part, mean over seeds", "weighted validation loss, by seed"))
    for i, (part, weight) in enumerate(zip(PARTS, record.weights, strict=True)):
        loss = record.losses[..., i].nanmean(0).tolist()
        if any(loss):
            style_of = {"mode": "lines", "line": {"color": style.colour(part, i + 1)}, **style.panel(1)}
            figure.add_scatter(x=list(range(1, len(loss) + 1)), y=loss, name=f"{part}, weight {weight:g}", **style_of)
    for i, seed in enumerate(record.seeds):
        loss, tint = record.checks[i].tolist(), style.colour("", i + 4)
        steps = [record.every * n for n in range(len(loss))]
        look = {"legendgroup": f"seed {seed}", **style.panel(2)}
        figure.add_scatter(x=steps, y=loss, name=f"seed {seed}", mode="lines+markers", line_color=tint, **look)
        best, star = record.best[i], {"symbol": "star", "size": 14, "color": tint}
        kept = {"x": [best], "y": [loss[best // record.every]], "mode": "markers", "marker": star, "showlegend": False}
        figure.add_scatter(**kept, **look)
    look = {"line_dash": "dash", "line_color": style.GREY, "annotation_text": "difference in means"}
    figure.add_hline(y=record.reference, **look, row=1, col=2)
    figure.update_xaxes(title_text="step").update_yaxes(title_text="nats per token", col=1)
    what = "a direction" if record.dimension == 1 else f"a cone of {record.dimension} dimensions"
    return style.finish(figure, f"Learning {what} from {len(record.seeds)} random starts", height=420)


@registered("by size", SubspaceEffects)
def plot_subspaces(record: SubspaceEffects) -> Drawing:
    """What the first k directions of each subspace do by k, the random one dashed, the baseline dotted."""
    known = [name for name in MEASURES if not record.values[..., MEASURES.index(name), :].isnan().all()]
    known = [name for name in known if name != "middle"] + ["weakest"] if record.inside is not None else known
    names = [name for name in _PANELS if name in known]
    figure = style.panels([_PANELS[name] for name in names], horizontal_spacing=0.05)
    for col, name in enumerate(names, start=1):
        for i, kind in enumerate(record.kinds):
            ks = record.ks[: record.size(kind)]
            found = [record.sampled(kind, k)[1] if name == "weakest" else record.found(kind, k, name) for k in ks]
            line = {"color": style.colour(kind, i), "dash": style.dash(kind)}
            look = {"line": line, "legendgroup": kind, "showlegend": col == 1, **style.panel(col)}
            style.add_line(figure, ks, found, kind, **look)
        without = record.before("bypass" if name == "weakest" else name).mean
        figure.add_hline(y=without, line_dash="dot", line_color=style.GREY, row=1, col=col)
    figure.update_xaxes(title_text="directions k", dtick=1)
    n = record.values.shape[-1]
    return style.finish(figure, f"Is one direction enough? (n = {n} prompts of each kind; dotted: without)", height=460)


@registered("independence", Independence)
def plot_independence(record: Independence) -> Drawing:
    """Change of the cosine with each direction when another is ablated: mean size over layers, and by layer."""
    axes = ("read", "resid_pre of layer"), ("ablated", "change of cosine")
    figure = style.panels(("mean size over layers", "mean change by layer"), *axes, column_widths=[0.45, 0.55])
    cells = [[record.size(a, b) for b in record.names] for a in record.ablations]
    look = {"colorscale": style.SEQUENTIAL, "showscale": False, **style.panel(1)}
    style.add_cells(figure, cells, x=list(record.names), y=list(record.ablations), **look)
    for i, ablated in enumerate(record.ablations):
        for j, read in enumerate(record.names):
            if ablated != read:
                name, change = f"{read}, {ablated} ablated", record.change[i, j].mean(-1).tolist()
                line = {"color": style.colour("random" if ablated == "placebo" else "", i), "dash": style.dash(ablated)}
                figure.add_scatter(x=list(range(len(change))), y=change, name=name, line=line, **style.panel(2))
    n = record.before.shape[-1]
    return style.finish(figure, f"Does ablating one direction move the other? (n = {n} harmful prompts)", height=440)


@registered("angles", GroupAngles)
def plot_angles(record: GroupAngles) -> Drawing:
    """Smallest principal angle of every two groups, beside that of random groups of the same sizes."""
    figure = style.panels(("groups", "random groups"), shared_yaxes=True)
    labels = [f"{name} ({n})" for name, n in zip(record.names, record.sizes_harmful, strict=True)]
    for col, grid in enumerate((record.angles[..., 0], record.control[..., 0].mean(0)), start=1):
        scale = {"colorscale": style.SEQUENTIAL, "zmin": 0, "zmax": 90, "colorbar": {"title": "degrees"}}
        look = {"texttemplate": "%{z:.0f}", "showscale": col == 2, **scale, **style.panel(col)}
        figure.add_heatmap(z=grid.tolist(), x=labels, y=labels, **look)
    figure.update_xaxes(title_text="group (harmful prompts)").update_yaxes(title_text="group", col=1)
    return style.finish(figure, "Angle between the directions of groups of prompts", height=480)
