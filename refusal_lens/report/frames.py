"""The numbers of a drawing as a table: what a "data" link offers where the record gives no table of its own."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import pandas as pd
import plotly.graph_objects as go


def figure_frame(figure: go.Figure) -> pd.DataFrame:
    """One row per point or cell of every trace: trace, x, y, z, error bars, text; empty columns are left out."""
    rows: list[dict[str, Any]] = []
    for i, trace in enumerate(figure.data):
        if trace.type == "heatmap":
            rows += _cells(trace, trace.name or f"map {i + 1}")
        elif trace.hoverinfo != "skip":  # a band around a line
            rows += _points(trace, trace.name or f"trace {i + 1}")
    return pd.DataFrame(rows).dropna(axis="columns", how="all")


def _points(trace: Any, name: str) -> list[dict[str, Any]]:
    x, y, texts = _list(trace.x), _list(trace.y), trace.text if isinstance(trace.text, (tuple, list)) else ()
    error = trace.error_y.to_plotly_json() if getattr(trace, "error_y", None) is not None else {}
    columns = _numbered(x, len(y)), y, _list(error.get("arrayminus")), _list(error.get("array")), texts
    rows = []
    for place, value, below, above, text in zip_longest(*columns):
        low = None if value is None or below is None else value - below
        high = None if value is None or above is None else value + above
        rows.append({"trace": name, "x": place, "y": value, "low": low, "high": high, "text": text})
    return rows


def _cells(trace: Any, name: str) -> list[dict[str, Any]]:
    z = _list(trace.z)
    text, y = _list(trace.text), _numbered(_list(trace.y), len(z))
    x = _numbered(_list(trace.x), max(map(len, z), default=0))
    return [
        {
            "trace": name,
            "x": x[j],
            "y": y[i],
            "z": value,
            "text": text[i][j].replace("<br>", " ") if text and isinstance(text[i], (tuple, list)) else None,
        }
        for i, row in enumerate(z)
        for j, value in enumerate(row)
        if value is not None
    ]


def _list(values: Any) -> Sequence[Any]:
    return [] if values is None else list(values)


def _numbered(values: Sequence[Any], n: int) -> list[Any]:
    return [*values, *range(len(values), n)]


def widget_frame(component: str, props: dict[str, Any]) -> pd.DataFrame:
    """One row per weight (head, dest, src, weight) or token (token, value)."""
    if component == "AttentionHeads":
        tokens, names = props["tokens"], props["attentionHeadNames"]
        rows = [
            (head, i, tokens[i], j, tokens[j], weight)
            for head, pattern in zip(names, props["attention"], strict=True)
            for i, row in enumerate(pattern)
            for j, weight in enumerate(row[: i + 1])
        ]
        return pd.DataFrame(rows, columns=["head", "dest", "dest token", "src", "src token", "weight"])
    if component == "ColoredTokens":
        return pd.DataFrame({"token": props["tokens"], "value": props["values"]})
    return pd.DataFrame()
