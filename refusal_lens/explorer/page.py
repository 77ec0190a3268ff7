"""A look as the explorer shows it: rows, coloured tokens, and plain HTML that stays in a stored notebook."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from ..records.labels import REGIONS, head_label, visible
from ..report import style
from .records import Look

NAMES = {"baseline": "plain", "adversarial": "with the suffix", "random_suffix": "with random tokens"}
_STILL = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)


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


def still(seen: Look, conditions: tuple[str, ...], layer: int, code: str, why: str = "") -> str:
    """The look without scripts: metric and reply by condition, the coloured text, attention of the top heads, and what
    was found about the suffix."""
    grids = [seen.sources[name].attention_by_region()[:, :, 0] for name in conditions]
    attention = {
        head_label(*head): [[f"{weight:.2f}" for weight in grid[head].tolist()] for grid in grids]
        for head in seen.top_heads
    }
    shown = {"rows": rows(seen), "strips": strips(seen, conditions, layer), "attention": attention, "regions": REGIONS}
    return _STILL.get_template("still.html.j2").render(seen=seen, layer=layer, code=code, why=why, **shown)
