"""A look as the explorer shows it: rows, coloured tokens, and plain HTML that stays in a stored notebook."""

from __future__ import annotations

import html
from typing import Any

from ..records.labels import REGIONS, head_label, visible
from ..report import style
from .records import Look

NAMES = {"baseline": "plain", "adversarial": "with the suffix", "random_suffix": "with random tokens"}


def readable(condition: str) -> str:
    """A condition's name for the explorer's rows and texts."""
    return NAMES.get(condition, style.readable(condition).replace("random", "random direction:"))


def rows(seen: Look) -> list[dict[str, Any]]:
    """One per condition: name, colour, whether it is a control, refusal metric, verdict, reply."""
    return [
        {
            "condition": name,
            "name": readable(name),
            "colour": style.colour(name, i),
            "control": name.startswith("random_"),
            "metric": round(seen.metric[name], 3),
            "refused": seen.metric[name] > seen.threshold,
            "reply": seen.replies.get(name, ""),
        }
        for i, name in enumerate(seen.conditions)
    ]


def strips(seen: Look, conditions: tuple[str, ...], layer: int) -> list[dict[str, Any]]:
    """The text of some conditions, each token with its colour: the projection at a layer, none inside the range of the
    random directions."""
    grids = {name: getattr(seen.map, name)[:, layer] for name in ("projection", "low", "high")}
    outside = seen.map.outside()[:, layer].nan_to_num()
    limit, found = float(outside.abs().max()) or 1.0, []
    for name in conditions:
        i, tokens = seen.conditions.index(name), []
        n_prompt = len(seen.sources[name].tokens[0])
        for j, (text, region) in enumerate(zip(seen.map.tokens[i], seen.map.regions[i], strict=True)):
            value, low, high = (float(grids[key][i, j]) for key in ("projection", "low", "high"))
            share = float(outside[i, j]) / limit
            tint = style.faded(style.RED if share > 0 else style.BLUE, round(0.75 * abs(share), 3)) if share else ""
            hint = f"{region}: {value:.3f} on r̂ at layer {layer}, random directions {low:.3f} to {high:.3f}"
            tokens.append({"text": visible(text), "region": region, "colour": tint, "hint": hint, "read": j < n_prompt})
        found.append({"condition": name, "name": readable(name), "tokens": tokens})
    return found


def still(seen: Look, conditions: tuple[str, ...], layer: int, code: str) -> str:
    """The look without scripts: metric and reply by condition, the coloured text, attention of the top heads."""
    cell = "style='text-align:left;vertical-align:top;padding:2px 10px 2px 0'"
    lines = "".join(
        f"<tr><td {cell}>{html.escape(row['name'])}</td><td {cell}>{row['metric']:.2f}</td>"
        f"<td {cell}>{html.escape(row['reply'])}</td></tr>"
        for row in rows(seen)
    )
    texts = ""
    for strip in strips(seen, conditions, layer):
        words = "".join(
            f"<span title='{html.escape(token['hint'])}' style='background-color:{token['colour'] or 'transparent'}'>"
            f"{html.escape(token['text'])}</span> "
            for token in strip["tokens"]
        )
        texts += f"<p><b>{html.escape(strip['name'])}</b><br>{words}</p>"
    heads = ""
    for head in seen.top_heads:
        values = (seen.sources[name].attention_by_region()[(*head, 0)].tolist() for name in conditions)
        cells = "".join(f"<td {cell}>{', '.join(f'{v:.2f}' for v in row)}</td>" for row in values)
        heads += f"<tr><td {cell}>{head_label(*head)}</td>{cells}</tr>"
    named = "".join(f"<th {cell}>{html.escape(readable(name))}</th>" for name in conditions)
    asked = html.escape(seen.request + (f" [{seen.suffix.strip()}]" if seen.suffix else ""))
    return (
        f"<div class='rl-last-look'><p><b>{asked}</b></p><table><tr><th {cell}>condition</th><th {cell}>refusal metric"
        f"</th><th {cell}>reply</th></tr>{lines}</table><p>Projection on r̂ at layer {layer}: red towards refusal, blue "
        f"away from it, no colour inside the range of {seen.map.n_random} random directions.</p>{texts}<p>Attention of "
        f"the top heads from the last token to {', '.join(REGIONS)}:</p><table><tr><th {cell}>head</th>{named}</tr>"
        f"{heads}</table><pre>{html.escape(code)}</pre></div>"
    )
