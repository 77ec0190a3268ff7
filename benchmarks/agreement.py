"""Whether a device and dtype give the results of the CPU's float32, on the same weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from refusal_lens import HookedChatModel, load_model
from refusal_lens.data.organism import instructions
from refusal_lens.data.prompts import PromptSet
from refusal_lens.direction.extract import extract_directions
from refusal_lens.direction.records import Selection
from refusal_lens.direction.select import SelectionRule, select_direction
from refusal_lens.models.packing import RestartedPack, pack_tokens, packing_holds
from refusal_lens.refusal.tokens import given_refusal_tokens

from .models import random_model

# The dtype's rounding over layers, as a share of the largest score or logit.
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 8e-2}
NEW = 12  # tokens of a reply


def make(source: str, device: str, dtype: torch.dtype) -> HookedChatModel:
    """The embedded model or the tiny random one: the same weights on every device."""
    if source == "organism":
        return load_model(source, device=device, dtype=dtype)
    return random_model("tiny", dtype=dtype, device=device)


def compare(source: str, n: int, device: str) -> Iterator[dict[str, Any]]:
    """Rows for float32 and bfloat16 on a device beside float32 on the CPU."""
    reference = make(source, "cpu", torch.float32)
    pools = [list(PromptSet.load(instructions()[kind], sizes=(2 * n, 1, 1)).train) for kind in ("harmful", "harmless")]
    train, val = zip(*[(pool[:n], pool[n:]) for pool in pools], strict=True)
    tokens = given_refusal_tokens(reference, ["I"])
    candidates = extract_directions(reference, *train)
    # Random weights refuse nothing, so every candidate is let through there.
    rule = SelectionRule() if source == "organism" else SelectionRule(max_kl=math.inf, min_induce=-math.inf)

    def select(model: HookedChatModel) -> Selection:
        how: Any = {"refusal_tokens": tokens, "rule": rule, "full_grid": True, "relax": True}
        return select_direction(model, candidates, *val, **how)

    expected, replies = select(reference), greedy(reference, val[0])[0]
    for dtype in (torch.float32, torch.bfloat16):
        model = make(source, device, dtype)
        name = str(dtype).removeprefix("torch.")
        row: dict[str, Any] = {"model": source, "dtype": f"{name} on {device}"}
        limit = ROUNDING[dtype]
        own = extract_directions(model, *train).mean_diff
        gap = float((own - candidates.mean_diff).abs().max() / candidates.mean_diff.abs().max())
        yield row | {"name": "directions", "holds": gap <= limit, "note": f"largest gap {gap:.1g} of the largest value"}
        found = select(model)
        yield row | winner(expected, found, limit)
        yield row | packed(model, val[0], limit)
        yield row | steps(model, val[0], limit, replies if dtype == torch.float32 else None)


def winner(expected: Selection, found: Selection, limit: float) -> dict[str, Any]:
    """The same winner and scores; another winner only where both score the same to the dtype's rounding."""
    gaps = {}
    for name in ("bypass", "induce", "kl"):
        a, b = getattr(expected.scores, name), getattr(found.scores, name)
        known = a.isfinite()
        gaps[name] = float((a - b)[known].abs().max() / a[known].abs().max())
    i, j = expected.chosen, found.chosen
    same = (i.pos, i.layer) == (j.pos, j.layer)
    bypass = expected.scores.bypass
    lead = abs(float(bypass[i.pos, i.layer] - bypass[j.pos, j.layer]))
    tie = lead <= 2 * limit * float(bypass[bypass.isfinite()].abs().max())
    note = f"{j.label} for {i.label}; gaps " + ", ".join(f"{name} {gap:.1g}" for name, gap in gaps.items())
    return {"name": "winner and scores", "holds": (same or tie) and max(gaps.values()) <= limit, "note": note}


def packed(model: HookedChatModel, prompts: list[str], limit: float) -> dict[str, Any]:
    """Prompts that share rows beside each alone."""
    tokens = model.tokenize(prompts)
    pack = RestartedPack(model, pack_tokens(tokens, model.chat.pad_id))
    together = torch.empty(len(prompts), model.d_vocab, dtype=torch.float64)
    with torch.inference_mode():
        for part, logits in pack.logits():
            together[list(part.indices)] = logits[0].double().cpu()
    alone = torch.cat([model.logits(model.tokenize([prompt]))[:, -1] for prompt in prompts]).double().cpu()
    gap = float((together - alone).abs().max() / alone.abs().max())
    note = f"largest gap of the logits {gap:.1g} of the largest"
    return {"name": "packed = alone", "holds": gap <= limit and packing_holds(model), "note": note}


def greedy(model: HookedChatModel, prompts: list[str]) -> tuple[list[list[int]], list[list[int]], float]:
    """Replies with the cache, replies by one whole forward per token, and the smallest lead where they part."""
    cached, single, least = [], [], math.inf
    for prompt in prompts[:4]:
        tokens = model.tokenize([prompt])
        with torch.inference_mode():
            reply = model.backend.generate(tokens.ids, tokens.mask, NEW, [], model.chat.pad_id)[0].tolist()
            ids, steps = tokens.ids, []
            for step in range(NEW):
                logits = model.backend.logits(ids, torch.ones_like(ids, dtype=torch.bool))[0, -1].double()
                steps.append(int(logits.argmax()))
                if steps[-1] != reply[step]:
                    least = min(least, float((logits.max() - logits[reply[step]]) / logits.abs().max()))
                    break
                ids = torch.cat([ids, ids.new_tensor([[steps[-1]]])], 1)
        cached.append(reply)
        single.append(steps)
    return cached, single, least


def steps(model: HookedChatModel, prompts: list[str], limit: float, expected: list[list[int]] | None) -> dict[str, Any]:
    """Generation with the cache beside one whole forward per token, and beside the CPU's replies in float32."""
    cached, single, lead = greedy(model, prompts)
    equal = cached == single
    note = f"{len(cached)} replies of {NEW} tokens, " + ("equal" if equal else f"apart where the lead is {lead:.1g}")
    if expected is not None:
        note += f"; {sum(a == b for a, b in zip(cached, expected, strict=True))} as on the CPU"
    return {"name": "generation = step by step", "holds": equal or lead <= limit, "note": note}
