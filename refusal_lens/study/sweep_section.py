"""Several models side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..report.page import Figure, Section, Table
from .sweep_figures import plot_depth, plot_sweep


@dataclass(frozen=True)
class Compared:
    """One model of a sweep.

    Attributes:
        summary: its ``summary.json``; empty when its study failed.
        model: its facts (name, n_layers, ...).
        report: its own report, relative to the sweep's folder.
        error: why its study failed, "" when it did not.
    """

    summary: dict[str, Any]
    model: dict[str, Any]
    report: str
    error: str = ""


def sweep_frame(found: Mapping[str, Compared]) -> pd.DataFrame:
    """One row a model, prompt set and condition."""
    rows = [
        {"model": name, "prompts": prompts, "condition": condition, **rate}
        for name, item in found.items()
        for prompts, rates in item.summary.get("refusal", {}).items()
        for condition, rate in rates.items()
    ]
    return pd.DataFrame(rows, columns=["model", "prompts", "condition", "rate", "low", "high", "n"])


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
    items: list[Any] = [Table("sweep-models", columns, tuple(rows), "Every model of the sweep.")]
    done = {name: item for name, item in found.items() if not item.error}
    if done:
        frame = sweep_frame(done)
        sizes = sorted({int(n) for n in frame["n"]})
        items.append(
            Figure(
                "sweep-rates",
                plot_sweep(frame),
                "Refusal rate by model and condition, with 95% Clopper-Pearson intervals.",
                n=f"{' or '.join(map(str, sizes))} prompts of each kind and model",
                control="a random direction of equal norm beside each effect",
                data=frame,
            )
        )
        depths = {name: (item.summary["direction"]["layer"], item.model["n_layers"]) for name, item in done.items()}
        items.append(
            Figure("sweep-depth", plot_depth(depths), "Layer of each model's direction, as a share of its depth.", n="")
        )
    return Section("sweep", "Models side by side", (), tuple(items))
