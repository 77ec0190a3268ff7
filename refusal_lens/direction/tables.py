"""TODO."""

from __future__ import annotations

import pandas as pd

from .records import DirectionTrace


def trace_frame(trace: DirectionTrace) -> pd.DataFrame:
    """One row a condition and layer: mean and standard deviation over prompts."""
    rows = [
        {
            "condition": condition,
            "layer": layer,
            "cosine_mean": float(trace.cosine[i, layer].mean()),
            "cosine_sd": float(trace.cosine[i, layer].std(correction=0)),
            "projection_mean": float(trace.projection[i, layer].mean()),
            "n": trace.cosine.shape[-1],
        }
        for i, condition in enumerate(trace.conditions)
        for layer in range(trace.cosine.shape[1])
    ]
    return pd.DataFrame(rows)
