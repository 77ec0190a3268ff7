"""Several models side by side: figures, and the section of a sweep's report."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..report import style
from ..report.drawing import Drawing
from ..report.page import RANDOM_DIRECTION, Figure, Item, Section, Table


@dataclass(frozen=True)
class Compared:
    """One model of a sweep."""

    summary: dict[str, Any]  # its ``summary.json``; empty when its study failed
    model: dict[str, Any]  # its facts (name, n_layers, ...)
    report: str  # its own, relative to the sweep's folder
    error: str = ""  # why its study failed


def plot_sweep(frame: pd.DataFrame) -> Drawing:
    """Refusal rates (columns model, prompts, condition, rate, low, high): one panel per kind of prompts, one group per
    model, one bar per condition."""
    kinds = list(dict.fromkeys(frame["prompts"]))
    figure = style.panels([f"{kind} prompts" for kind in kinds], shared_yaxes=True)
    for column, kind in enumerate(kinds, 1):
        style.add_conditions(figure, frame[frame["prompts"] == kind], "model", "rate", **style.panel(column))
    shown: set[str] = set()
    for trace in figure.data:  # one entry of the legend for both panels
        trace.update(legendgroup=trace.name, showlegend=trace.name not in shown)
        shown.add(trace.name)
    figure.update_yaxes(range=[0, 1], tickformat=".0%")
    figure.update_yaxes(title_text="refused", col=1).update_xaxes(title_text="model")
    return style.finish(figure, "Refusal rates by model (95% intervals)")


def plot_depth(places: Mapping[str, tuple[int, int]]) -> Drawing:
    """Depth of the chosen layer, from (layer, number of layers) of each model."""
    figure = Drawing()
    figure.add_bar(
        x=list(places),
        y=[layer / n_layers for layer, n_layers in places.values()],
        text=[f"{layer} of {n_layers}" for layer, n_layers in places.values()],
        marker_color=style.BLUE,
    )
    figure.update_yaxes(range=[0, 1], tickformat=".0%", title_text="layer / layers").update_xaxes(title_text="model")
    return style.finish(figure, "Depth of each model's direction")


def sweep_section(found: Mapping[str, Compared]) -> Section:
    """Where each model's direction is, what it does, and which models failed and why."""
    columns = ("model", "layers", "d_model", "direction", "bypass", "induce", "KL", "relaxed", "report or reason")
    rows: list[tuple[str, ...]] = []
    for name, item in found.items():
        if item.error:
            rows.append((name, "", "", "", "", "", "", "", item.error))
            continue
        direction, scores = item.summary["direction"], item.summary["scores"]
        place = f"({direction['pos']}, {direction['layer']})"
        numbers = tuple(f"{scores[score]:.2f}" for score in ("bypass", "induce", "kl"))
        shape = str(item.model["n_layers"]), str(item.model["d_model"])
        rows.append((name, *shape, place, *numbers, direction["relaxed"] or "no", item.report))
    items: list[Item] = [Table("sweep-models", columns, tuple(rows), "Every model of the sweep.")]
    done = {name: item for name, item in found.items() if not item.error}
    if done:
        frame = pd.DataFrame(
            {"model": name, "prompts": prompts, "condition": condition, **rate}
            for name, item in done.items()
            for prompts, rates in item.summary["refusal"].items()
            for condition, rate in rates.items()
        )
        n = f"{' or '.join(map(str, sorted(set(frame['n']))))} prompts of each kind and model"
        caption = "Refusal rate by model and condition, with 95% Clopper-Pearson intervals."
        control = f"{RANDOM_DIRECTION} for each effect"
        items.append(Figure("sweep-rates", plot_sweep(frame), caption, n, control, frame))
        depths = {name: (item.summary["direction"]["layer"], item.model["n_layers"]) for name, item in done.items()}
        caption = "Layer of each model's direction, as a share of its depth."
        items.append(Figure("sweep-depth", plot_depth(depths), caption))
    return Section("sweep", "Models side by side", (), tuple(items))
