"""Figures that compare models."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..report import style


def plot_sweep(frame: pd.DataFrame) -> go.Figure:
    """Refusal rates: a panel for each kind of prompts, a group for each model, a bar for each condition.

    Args:
        frame: columns model, prompts, condition, rate, low, high.
    """
    kinds = list(dict.fromkeys(frame["prompts"]))
    figure = make_subplots(rows=1, cols=len(kinds), shared_yaxes=True, subplot_titles=[f"{k} prompts" for k in kinds])
    shown: set[str] = set()
    for column, kind in enumerate(kinds, 1):
        some = frame[frame["prompts"] == kind]
        for i, (condition, rows) in enumerate(some.groupby("condition", sort=False)):
            figure.add_bar(
                x=rows["model"],
                y=rows["rate"],
                error_y=style.error_bars(style.intervals(rows, "rate")),
                name=style.readable(str(condition)),
                legendgroup=condition,
                showlegend=condition not in shown,
                marker=style.marker(str(condition), i),
                row=1,
                col=column,
            )
            shown.add(str(condition))
    figure.update_yaxes(range=[0, 1], tickformat=".0%")
    figure.update_yaxes(title_text="refused", col=1)
    return style.finish(figure)


def plot_depth(places: Mapping[str, tuple[int, int]]) -> go.Figure:
    """Depth of the chosen layer.

    Args:
        places: model -> (layer, number of layers).
    """
    figure = go.Figure()
    figure.add_bar(
        x=list(places),
        y=[layer / n_layers for layer, n_layers in places.values()],
        text=[f"{layer} of {n_layers}" for layer, n_layers in places.values()],
        marker_color=style.BLUE,
    )
    figure.update_yaxes(range=[0, 1], tickformat=".0%", title_text="depth of the direction")
    return style.finish(figure)
