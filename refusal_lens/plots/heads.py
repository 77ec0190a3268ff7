"""Figures of one picked head: what it writes, from which tokens it takes it, where it looks."""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..attribution.records import Head, head_label
from ..attribution.reports import HeadReport
from ..attribution.token_records import AttentionPatterns, SourceContributions
from ..chat import visible
from . import style
from .thinning import MAX_TOKENS, thinned


def plot_head(record: HeadReport, head: Head) -> go.Figure:
    """What one head writes along r̂ on every prompt: a box and one point a prompt, harmful beside harmless."""
    figure = go.Figure()
    for name, found in (("harmful", record.report), ("harmless", record.contrast)):
        if found is None:
            continue
        figure.add_box(
            x=[round(v, 4) for v in found.values[head].tolist()],
            name=f"{name}, n = {len(found.prompts)}",
            marker={"color": style.colour(name), "size": 4},
            line={"width": 1.5},
            boxpoints="all",
            boxmean=True,
            jitter=0.6,
            pointpos=0,
            orientation="h",
            hovertemplate="%{x:.3f}<extra></extra>",
        )
    figure.add_vline(x=0, line_color=style.GREY, line_width=1)
    figure.update_xaxes(title_text="along r̂ at the last position")
    style.finish(figure, f"{head_label(*head)}: what it writes", height=260)
    return figure.update_layout(showlegend=False, margin={"l": 130})


def plot_head_tokens(record: SourceContributions, prompt: int, head: Head) -> go.Figure:
    """One head on one prompt, by source token: its attention from the destination (above) and what it takes from
    each token along r̂ (below)."""
    tokens = [visible(token) for token in record.tokens[prompt]]
    start = record.values.shape[-1] - len(tokens)
    rows = (
        ("attention", record.pattern[head][prompt, start:], [style.GREY] * len(tokens)),
        ("along r̂", record.values[head][prompt, start:], None),
    )
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    for row, (what, values, tints) in enumerate(rows, start=1):
        numbers = [round(v, 5) for v in values.tolist()]
        figure.add_bar(
            x=list(range(len(tokens))),
            y=numbers,
            text=tokens,
            textposition="none",
            name=what,
            marker_color=tints or [style.RED if v > 0 else style.BLUE for v in numbers],
            hovertemplate="%{text}<br>" + what + " %{y:.3f}<extra></extra>",
            row=row,
            col=1,
        )
        figure.update_yaxes(title_text=what, row=row, col=1)
    figure.update_xaxes(tickvals=list(range(len(tokens))), ticktext=tokens, tickangle=-50, row=2, col=1)
    title = f"{head_label(*head)}: from which tokens, read at position {record.pos}"
    return style.finish(figure, title, height=400).update_layout(showlegend=False)


def plot_attention(record: AttentionPatterns, head: Head, limit: int = MAX_TOKENS) -> go.Figure:
    """Attention of one head on one prompt, from every token (rows) to every earlier one (columns); more than ``limit``
    tokens are thinned, and the title says so.

    Raises:
        ValueError: the record does not hold this head.
    """
    values, tokens, notice = thinned(record.values[record.heads.index(head)].float(), record.tokens, limit)
    labels = [visible(token) for token in tokens]
    index = list(range(len(labels)))
    figure = go.Figure(
        go.Heatmap(
            z=[[round(v, 4) if j <= i else None for j, v in enumerate(row)] for i, row in enumerate(values.tolist())],
            x=index,
            y=index,
            text=[[f"{reader} ← {source}" for source in labels[: i + 1]] for i, reader in enumerate(labels)],
            colorscale=style.SEQUENTIAL,
            zmin=0,
            zmax=1,
            colorbar={"title": "weight"},
            hovertemplate="%{text}<br>%{z:.3f}<extra></extra>",
            hoverongaps=False,
        )
    )
    figure.update_xaxes(title_text="looks at", tickvals=index, ticktext=labels, tickangle=-50, showgrid=False)
    figure.update_yaxes(title_text="token", tickvals=index, ticktext=labels, autorange="reversed", showgrid=False)
    title = f"{head_label(*head)}: attention pattern" + (f" ({notice})" if notice else "")
    return style.finish(figure, title, height=min(900, 160 + 16 * len(labels)))
