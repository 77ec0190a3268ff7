"""Why a suffix acts on the request in view: each choice as a call of ``hijacking`` beside its control, and as code."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from ..direction.records import FoundDirection
from ..errors import PromptError
from ..hijacking.controls import random_controls
from ..hijacking.curves import head_curves
from ..hijacking.grids import patching_grid
from ..hijacking.paths import path_curves, path_effects
from ..hijacking.shifts import attention_shift
from ..models.model import HookedChatModel
from ..progress import silent
from ..records.labels import head_label
from ..refusal.metric import refused_prompts
from .records import Look

CHOICES = {
    "": "nothing",
    "causes": "causes of attention by head",
    "positions": "patching grid by position and layer",
    "heads": "patching grid by head",
    "paths": "direct paths",
    "compositions": "number of paths cut",
    "curves": "number of heads cut off",
}
SITES = {"positions": "resid_pre", "heads": "z"}
CELLS = {"exact": 8, "n_placebo": 2}  # the gradient gives the others
TRIED, OTHERS = 12, 3  # prompts that order the heads: the first that are refused, among the first ones
ALONE = "One request, no interval: `refusal-lens hijack` measures many."
_NO_WIDTH = re.compile(r" \[[^][ ,]+, [^][ ,]+\]")  # of one prompt


def measure(model: HookedChatModel, seen: Look, found: FoundDirection, choice: str, others: Sequence[str] = ()) -> Any:
    """The record of a choice; of "curves", with the heads ordered on ``others``."""
    request, suffix, control, tokens = [seen.request], seen.suffix, [seen.control], found.refusal_tokens
    if site := SITES.get(choice):
        cells: Any = CELLS
        return patching_grid(model, request, suffix, control, found, tokens, site=site, **cells, progress=silent)
    if choice == "curves":
        chosen: Any = {"choosing": others, "choosing_random": random_controls(model.chat, others, suffix).texts}
        return head_curves(model, request, suffix, control, found, tokens, **chosen)
    shift = attention_shift(model, request, suffix, control, receivers=seen.top_heads, plain=False)
    if choice == "compositions":
        return path_curves(model, request, suffix, control, tokens, shift)
    return shift if choice == "causes" else path_effects(model, request, suffix, control, found, tokens, shift)


def as_code(seen: Look, choice: str, others: Sequence[str] = ()) -> str:
    """The same as Python."""
    begin = f"request, suffix, random = {seen.request!r}, {seen.suffix!r}, {seen.control!r}\n"
    shared, scored = "model, [request], suffix, [random]", "found, found.refusal_tokens"
    heads = [head_label(*head) for head in seen.top_heads]
    shift = f"{begin}shift = rl.hijacking.attention_shift({shared}, receivers={heads}, plain=False)\n"
    cells = ", ".join(f"{name}={n}" for name, n in CELLS.items())
    ordered = f"others = {list(others)}\ndrawn = rl.hijacking.random_controls(model.chat, others, suffix).texts\n"
    grid = f"grid = rl.hijacking.patching_grid({shared}, {scored}, site={SITES.get(choice)!r}, {cells})\n"
    curves = f"curves = rl.hijacking.head_curves({shared}, {scored}, choosing=others, choosing_random=drawn)\n"
    return {
        "causes": f"{shift}shift.plot()",
        "paths": f"{shift}paths = rl.hijacking.path_effects({shared}, {scored}, shift)\npaths.plot()",
        "compositions": f"{shift}paths = rl.hijacking.path_curves({shared}, found.refusal_tokens, shift)\npaths.plot()",
        "curves": f"{begin}{ordered}{curves}curves.plot()",
    }.get(choice, f"{begin}{grid}grid.plot()")


def view(
    model: HookedChatModel, seen: Look, found: FoundDirection, choice: str, prompts: Sequence[str]
) -> dict[str, Any]:
    """Plotly's figure of a choice, its sentence and its code.

    Args:
        prompts: those of which a few order the heads.

    Raises:
        PromptError: no random tokens of equal length, or no other request that is refused.
    """
    others: list[str] = []
    if not seen.control:
        raise PromptError("; ".join(seen.notes))
    if choice == "curves":
        if not (some := [text for text in prompts if text != seen.request][:TRIED]):
            raise PromptError("the order of heads is chosen on other requests: give some as prompts of rl.explore")
        others, _ = refused_prompts(model, some, found.refusal_tokens, OTHERS)
    record = measure(model, seen, found, choice, others)
    ordered = [f"Heads are ordered on {len(others)} other requests, which the model refuses."] if others else []
    said = [record.sentence(), ALONE, *ordered, *getattr(record, "notes", ())]
    # An interval over one prompt has no width: neither its numbers nor its bars are shown.
    drawn = json.loads(_NO_WIDTH.sub("", record.plot().to_json()))
    for trace in drawn["data"]:
        trace.pop("error_x", None)
        trace.pop("error_y", None)
    return {**drawn, "text": _NO_WIDTH.sub("", " ".join(said)), "code": as_code(seen, choice, others)}
