"""Figures of attribution: heads, components, source tokens, propagation, causal checks; ``views`` has CircuitsVis's."""

from collections.abc import Sequence

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from ..records.base import figure as registered
from ..records.labels import Head, as_head, head_label, index_of, shortened, visible
from ..report import style
from ..report.drawing import Drawing
from .causal_records import CausalCheck, PatchingComparison
from .records import ComponentContributions, DirectLogitAttribution, HeadContributions, TopHeads, highest
from .token_records import AttentionPatterns, Lens, Propagation, SourceContributions
from .views import thinned


@registered("map", HeadContributions, TopHeads)
def plot_head_contributions(record: HeadContributions | TopHeads, top: int = 8) -> Drawing:
    """Layer x head heatmap of mean contributions; the top heads (for ``TopHeads``, the chosen ones) are labelled."""
    shown = record.reported if isinstance(record, TopHeads) else record
    mean = shown.mean
    limit = float(mean.abs().max()) or 1.0
    look = {**style.diverging(limit, "along r̂"), "hovertemplate": "%{customdata}<br>mean %{z:.3f}<extra></extra>"}
    figure = Drawing(go.Heatmap(z=mean.tolist(), customdata=shown.labels, **look))
    marked = record.heads if isinstance(record, TopHeads) else highest(mean, top)
    for layer, head in marked:
        font = {"size": 9, "color": "white" if abs(float(mean[layer, head])) > 0.6 * limit else "black"}
        figure.add_annotation(x=head, y=layer, text=shown.labels[layer][head], showarrow=False, font=font)
    figure.update_xaxes(title_text="head", dtick=1 if mean.shape[1] <= 16 else None)
    figure.update_yaxes(title_text="layer", autorange="reversed")
    title = f"What each head writes along r̂ (n = {len(shown.prompts)})"
    return style.finish(figure, title, height=max(320, 90 + 18 * mean.shape[0]))


@registered("waterfall", ComponentContributions, DirectLogitAttribution)
def plot_components(record: ComponentContributions | DirectLogitAttribution, top: int = 12) -> Drawing:
    """Waterfall of the strongest parts, in the order of the stream; one bar holds the rest, so it adds up."""
    parts, title, unit = record.parts.mean(-1), "What the components write along r̂", "along r̂"
    if isinstance(record, DirectLogitAttribution):
        other = f" - ({', '.join(record.against)})" if record.against else ""
        cap = ", before the logit cap" if record.cap else ""
        title, unit = f"Logit of ({', '.join(record.answer)}){other}, by component{cap}", "logits"
    chosen = sorted(parts.abs().topk(min(top, len(parts))).indices.tolist())
    values, names = [float(parts[i]) for i in chosen], [record.part_labels[i] for i in chosen]
    if left := len(parts) - len(chosen):
        names.append(f"{left} others")
        values.append(float(parts.sum()) - sum(values))
    figure = style.waterfall(names, values, ("total", sum(values)), style.RED, unit).update_xaxes(tickangle=-40)
    return style.finish(figure, title, height=420)


@registered("tokens", SourceContributions)
def plot_sources(
    record: SourceContributions, prompt: int = 0, heads: Sequence[Head] | None = None, width: int = 12
) -> Drawing:
    """A prompt as a strip of tokens, ``width`` per line, coloured by what each writes along r̂ at the destination, all
    ``heads`` together (every head if None)."""
    tokens = record.tokens[prompt]
    values = record.of_prompt(prompt, heads).tolist()
    masks = {name: record.region_mask(name)[prompt, -len(tokens) :].tolist() for name in record.regions}
    regions = [next(name for name, mask in masks.items() if mask[i]) for i in range(len(tokens))]
    shown = [visible(token) for token in tokens]
    figure = Drawing(style.token_strip(shown, values, 0, regions, width=width, unit="along r̂"))
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, autorange="reversed")
    who = "all heads" if heads is None else ", ".join(head_label(*head) for head in heads)
    title = f"Source tokens of {who}, read at position {record.pos}"
    return style.finish(figure, title, height=140 + 42 * -(-len(tokens) // width))


@registered("by region", SourceContributions)
def plot_sources_by_region(
    record: SourceContributions, heads: Sequence[Head | str] | None = None, top: int = 8
) -> Drawing:
    """Mean contribution of each region through each of ``heads`` (the ``top`` ones if None), stacked: the bars of a
    head sum to its contribution."""
    means = record.by_region().mean(2)
    named = highest(means.sum(-1), top) if heads is None else tuple(as_head(head) for head in heads)
    values = {name: [float(means[(*head, i)]) for head in named] for i, name in enumerate(record.regions)}
    figure = Drawing()
    style.add_regions(figure, [head_label(*head) for head in named], values)
    figure.update_xaxes(title_text="head").update_yaxes(title_text="written along r̂")
    figure.update_layout(barmode="relative")
    return style.finish(figure, f"What each head writes along r̂, by source region (n = {len(record.prompts)})")


@registered("by layer and token", Propagation)
def plot_propagation(record: Propagation, prompt: int | None = None) -> Drawing:
    """Projection on r̂ by layer and token: the mean over prompts by region and template token, or one prompt."""
    if prompt is None:
        z, columns = record.by_column().nanmean(1), list(record.columns)
        title = f"Projection on r̂, from the instruction to the last token (n = {len(record.prompts)})"
    else:
        columns = [visible(token) for token in record.tokens[prompt]]
        z, title = record.projection[:, prompt, -len(columns) :], "Projection on r̂ by layer and token"
    figure = Drawing(style.layer_map(z, columns, "x · r̂"))
    figure.update_xaxes(tickvals=list(range(len(columns))), ticktext=columns, tickangle=-40)
    figure.update_xaxes(title_text="token").update_yaxes(title_text="resid_pre of layer", type="category")
    return style.finish(figure, title, height=max(360, 120 + 14 * len(z)))


@registered("top heads", TopHeads)
def plot_top_heads(record: TopHeads) -> Drawing:
    """The chosen heads with 95% intervals, on the reported and the contrast prompts."""
    figure = Drawing()
    look = {
        "customdata": [float(record.p_values[head]) for head in record.heads],
        "hovertemplate": "%{x}: %{y:.3f}<br>adjusted p %{customdata:.2g}<extra></extra>",
    }
    for name, note, shown in (("harmful", " (reported)", record.reported), ("harmless", "", record.contrast)):
        if shown is not None:
            found, label = [shown.interval(*head) for head in record.heads], f"{name}{note}, n = {len(shown.prompts)}"
            style.add_bars(figure, record.labels, found, label, marker_color=style.colour(name), **look)
    figure.update_xaxes(title_text="head").update_yaxes(title_text="written along r̂")
    figure.update_layout(barmode="group")
    return style.finish(figure, f"What the top heads write, chosen on {record.n_selection} other prompts")


@registered("causal check", CausalCheck)
def plot_causal_check(record: CausalCheck) -> Drawing:
    """Change in the refusal metric under each condition, and predicted against measured change per head."""
    titles = (
        f"change in the refusal metric (n = {record.n_reported})",
        f"single heads: Spearman {record.spearman:.2f} (p = {record.p_value:.2g})",
    )
    across = ("heads replaced or kept", "predicted change along r̂")
    up = ("change in the refusal metric", "measured change in the metric")
    figure = style.panels(titles, across, up, column_widths=[0.55, 0.45], horizontal_spacing=0.12)
    conditions = [name for name in record.conditions if name != "baseline"]
    order = [style.readable(name) for name in conditions]
    for control in (False, True):  # one trace each: Plotly warns about a list of colours with hatches
        names = [c for c in conditions if ("random" in c or c == "keep_none") == control]
        look = style.bar(style.colour("random_heads" if control else "heads"), "/" if control else "")
        more = {"showlegend": False, "hovertemplate": "%{x}: %{y:.2f}<extra></extra>", **style.panel(1)}
        changes = [record.change(name) for name in names]
        style.add_bars(figure, [style.readable(name) for name in names], changes, "", marker=look, **more)
    figure.update_layout(barmode="overlay").update_xaxes(categoryorder="array", categoryarray=order, row=1, col=1)
    table = record.singles_frame()
    for named, name, kind in ((True, "top heads", "heads"), (False, "random heads", "random_heads")):
        rows = table[table["named"] == named]
        figure.add_scatter(
            x=rows["predicted"],
            y=rows["measured"],
            mode="markers",
            name=name,
            text=rows["label"],
            marker={"color": style.colour(kind), "size": 8, "symbol": "circle" if named else "x"},
            error_y=style.error_bars(style.intervals(rows, "measured"), thickness=1),
            hovertemplate="%{text}<br>predicted %{x:.3f} along r̂<br>measured %{y:.3f}<extra></extra>",
            **style.panel(2),
        )
    figure.update_xaxes(tickangle=-35, row=1, col=1)
    return style.finish(figure, "Do the top heads cause the refusal?", height=480)


@registered("estimated and exact", PatchingComparison)
def plot_patching(record: PatchingComparison) -> Drawing:
    """Attribution patching's estimate against exact patching, one point per head."""
    table = record.to_frame().dropna()
    both = table[["estimated", "exact"]].to_numpy()
    ends = [float(both.min()), float(both.max())]
    figure = Drawing(layout_showlegend=False)
    figure.add_scatter(x=ends, y=ends, mode="lines", line={"dash": "dash", "color": style.GREY})
    figure.add_scatter(
        x=table["estimated"],
        y=table["exact"],
        text=table["label"],
        mode="markers",
        marker={"color": style.BLUE, "size": 7},
        hovertemplate="%{text}<br>estimated %{x:.3f}<br>exact %{y:.3f}<extra></extra>",
    )
    figure.update_xaxes(title_text="estimated by the gradient").update_yaxes(title_text="measured by patching")
    return style.finish(figure, f"Attribution patching: Spearman {record.spearman:.2f} ({len(record.clean)} pairs)")


@registered("tokens", Lens)
def plot_lens(record: Lens) -> Drawing:
    """The tokens that each vector favours (right) and disfavours (left) most, coloured by their logits."""
    z, k = torch.cat([record.bottom, record.top.flip(-1)], 1), record.top.shape[1]
    words = [(*a, *b[::-1]) for a, b in zip(record.bottom_tokens, record.top_tokens, strict=True)]
    look = {"texttemplate": "%{text}", "textfont_size": 9, "hovertemplate": "%{y}, %{text}: %{z:.2f}<extra></extra>"}
    look |= {"xgap": 1, "ygap": 2, **style.diverging(float(z.abs().max()) or 1.0, "logit")}
    text = [[shortened(visible(word), 10) for word in row] for row in words]
    figure = Drawing(go.Heatmap(z=z.tolist(), y=record.vectors, text=text, **look))
    ticks = {"tickvals": [0, 2 * k - 1], "ticktext": ["disfavoured most", "favoured most"]}
    figure.update_xaxes(**ticks, showgrid=False, title_text="token")
    figure.update_yaxes(autorange="reversed", showgrid=False, title_text="vector")
    low, high = float(record.random.min()), float(record.random.max())
    title = f"In words (highest logit of {len(record.random)} random directions: {low:.1f} to {high:.1f})"
    return style.finish(figure, title, height=120 + 28 * len(record.vectors)).update_layout(margin_l=120)


@registered("head", TopHeads)
def plot_head(record: TopHeads, head: Head | str) -> Drawing:
    """What one head writes along r̂ on every prompt: a box and one point per prompt, harmful next to harmless."""
    head = as_head(head)
    figure = Drawing()
    for name, found in (("harmful", record.reported), ("harmless", record.contrast)):
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
    figure.update_xaxes(title_text="written along r̂ at the last position").update_yaxes(title_text="prompts")
    style.finish(figure, f"{head_label(*head)}: what it writes", height=260)
    return figure.update_layout(showlegend=False, margin={"l": 130})


@registered("head", SourceContributions)
def plot_head_tokens(record: SourceContributions, prompt: int, head: Head | str) -> Drawing:
    """One head on one prompt, by source token: its attention from the destination (above) and what it takes from
    each token along r̂ (below)."""
    head = as_head(head)
    tokens, index = [visible(token) for token in record.tokens[prompt]], list(range(len(record.tokens[prompt])))
    figure = Drawing(make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06))
    for row, (what, grid) in enumerate((("attention", record.pattern), ("along r̂", record.values)), start=1):
        numbers = [round(v, 5) for v in grid[head][prompt, -len(tokens) :].tolist()]
        signs = [style.RED if v > 0 else style.BLUE for v in numbers]
        figure.add_bar(
            x=index,
            y=numbers,
            text=tokens,
            textposition="none",
            name=what,
            marker_color=[style.GREY] * len(tokens) if row == 1 else signs,
            hovertemplate="%{text}<br>" + what + " %{y:.3f}<extra></extra>",
            **style.panel(1, row),
        )
        figure.update_yaxes(title_text=what, row=row, col=1)
    figure.update_xaxes(tickvals=index, ticktext=tokens, tickangle=-50, title_text="source token", row=2, col=1)
    title = f"{head_label(*head)}: source tokens, read at position {record.pos}"
    return style.finish(figure, title, height=400).update_layout(showlegend=False)


@registered("pattern", AttentionPatterns)
def plot_attention(record: AttentionPatterns, head: Head | str | None = None) -> Drawing:
    """Attention of one head (the first if None) on one prompt, from every token (rows) to every earlier one (columns);
    more than ``MAX_TOKENS`` are grouped, and the title says so."""
    label = record.labels[0] if head is None else head_label(*as_head(head))
    place = index_of(record.labels, label, "head", "AttentionPatterns")
    values, tokens, notice = thinned(record.values[place].float(), record.tokens)
    labels = [visible(token) for token in tokens]
    figure = Drawing()
    style.add_attention(figure, values.tolist(), labels)
    title = f"{label}: attention pattern" + (f" ({notice})" if notice else "")
    return style.finish(figure, title, height=min(900, 160 + 16 * len(labels)))
