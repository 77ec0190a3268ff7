"""Records to the tables that their "data" links offer, where the drawing alone would say less."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from ..records.labels import Head, head_label
from ..stats import mean_interval
from .token_records import Propagation, SourceContributions


def propagation_frame(record: Propagation) -> pd.DataFrame:
    """One row a site and column of the heatmap: mean projection on r̂ over prompts."""
    grid = record.by_column()
    rows = []
    for site in range(grid.shape[0]):
        for j, column in enumerate(record.columns):
            values = [v for v in grid[site, :, j].tolist() if v == v]
            if values:
                found = mean_interval(values)
                rows.append((site, column, found.mean, found.low, found.high, found.n))
    return pd.DataFrame(rows, columns=["site", "column", "mean", "low", "high", "n"])


def sources_frame(record: SourceContributions, heads: Sequence[Head]) -> pd.DataFrame:
    """One row a head and region: mean contribution and mean attention."""
    values, attention = record.by_region().mean(2), record.attention_by_region().mean(2)
    rows = [
        (head_label(*head), region, float(values[(*head, i)]), float(attention[(*head, i)]), len(record.prompts))
        for head in heads
        for i, region in enumerate(record.regions)
    ]
    return pd.DataFrame(rows, columns=["head", "region", "along_direction", "attention", "n"])
