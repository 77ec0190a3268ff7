"""One condition looked at: projections, heads, attention by region, dominance, metric and replies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.components import Collected, decompose
from ..attribution.sources import source_contributions
from ..attribution.token_records import SourceContributions
from ..errors import ModelError
from ..hooks.readout import Readout
from ..models.chat import Tokens
from ..models.model import HookedChatModel
from ..records.direction import Direction
from ..records.labels import REGIONS, Head
from ..refusal.metric import refusal_metric
from ..refusal.phrases import is_refusal
from ..refusal.records import RefusalTokens
from ..tensors import cosine, wide
from .observation_records import Observation, Split

_SUFFIX = REGIONS.index("suffix")


def observe(
    model: HookedChatModel,
    condition: str,
    prompts: Sequence[str],
    direction: Direction,
    top_heads: Sequence[Head],
    refusal_tokens: RefusalTokens,
    suffixes: Sequence[str] | None = None,
    max_new_tokens: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> tuple[Observation, SourceContributions]:
    """Read one condition.

    Args:
        condition: its label.
        suffixes: one per prompt, or None.
        max_new_tokens: length of the replies; 0 for none (then refusals are judged by the metric's sign).

    Returns:
        The observation, and the source contributions that splits and token forensics need.
    """
    prompts = list(prompts)
    given = list(suffixes) if suffixes is not None else [""] * len(prompts)
    sources = source_contributions(model, prompts, direction, suffixes=given)
    found = Collected(model, len(prompts))
    readout = Readout.of(model, direction.unit)
    tokens = model.tokenize(prompts, given)
    for batch in model.batches(tokens):
        found.put(batch, _watch(model, batch, readout, list(top_heads)))
    rows = found.rows
    responses: list[str] = []
    if max_new_tokens:
        responses = model.generate(tokens, max_new_tokens, on_batch=on_batch)
    observation = Observation(
        condition=condition,
        prompts=tuple(prompts),
        suffixes=tuple(given),
        projection=rows["resid"],
        cosine=rows["cosine"],
        instruction_projection=rows["instruction"],
        instruction_cosine=rows["instruction_cosine"],
        instruction_max=rows["instruction_max"],
        heads=rows["heads"],
        by_region=sources.by_region().sum(1).transpose(1, 2),
        attn_bias=rows["attn_bias"],
        mlp=rows["mlp"],
        embed=rows["embed"],
        attention=rows["attention"].permute(0, 1, 3, 2),
        attention_mean=rows["attention_all"].mean(-1),
        dominance=rows["dominance"],
        top_dominance=rows["top_dominance"][0],
        metric=refusal_metric(model, prompts, refusal_tokens, given),
        top_heads=tuple((int(a), int(b)) for a, b in top_heads),
        responses=tuple(responses),
        refused=tuple(is_refusal(reply) for reply in responses),
    )
    return observation, sources


def _watch(model: HookedChatModel, batch: Tokens, readout: Readout, top: list[Head]) -> dict[str, Tensor]:
    """One forward pass; the rows that ``observe`` needs, prompts on the last axis."""
    n_post = batch.n_post
    regions = torch.stack([batch.region(name) for name in REGIONS], -1).to(readout.vector)  # [batch pos region]
    inside = batch.region("instruction")
    last = torch.where(inside, torch.arange(inside.shape[1], device=inside.device), -1).amax(-1)
    rows = torch.arange(len(batch), device=last.device)
    r = readout.vector
    values: dict[int, Tensor] = {}
    attention: dict[int, Tensor] = {}
    shares: dict[int, Tensor] = {}
    top_parts: list[Tensor] = []
    at_instruction: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def on_values(layer: int) -> Callable:
        def hook_fn(v: Tensor, hook: Any) -> None:
            v = v.reshape(*v.shape[:2], -1, model.d_head)
            values[layer] = wide(v).to(r)

        return hook_fn

    def on_pattern(layer: int) -> Callable:
        def hook_fn(p: Tensor, hook: Any) -> None:
            weights = wide(p[:, :, -n_post:]).to(r) * batch.mask[:, None, None]
            attention[layer] = torch.einsum("bhqk,bkr->hqrb", weights, regions)
            v = values.pop(layer)
            grouped = weights[:, :, -1].unflatten(1, (v.shape[2], -1))  # query heads by their value head
            z = torch.einsum("bkgs,bskd,bsr->bkgrd", grouped, v, regions).flatten(1, 2)
            # What each region writes: the norm behind it, if any, divides all alike and leaves shares as they are.
            weight = model.backend.output_weight(layer).detach().to(r)
            writes = torch.einsum("bhrd,hde->bhre", z, weight)
            shares[layer] = _share(writes.sum(1))
            top_parts.extend(writes[:, head] for lay, head in top if lay == layer)

        return hook_fn

    def on_resid(site: int) -> Callable:
        def hook_fn(x: Tensor, hook: Any) -> None:
            along = wide(x).to(r) @ r
            chosen = wide(x[rows, last]).to(r)
            best = along.masked_fill(~inside, float("-inf")).amax(-1)
            at_instruction[site] = chosen @ r, cosine(chosen, r), best
            ends[site] = cosine(wide(x[:, -1]).to(r), r)

        return hook_fn

    ends: dict[int, Tensor] = {}
    depth = model.n_layers
    hooks = [(f"blocks.{depth - 1}.hook_resid_post", on_resid(depth))]
    for layer in range(depth):
        hooks += [
            (f"blocks.{layer}.hook_resid_pre", on_resid(layer)),
            (f"blocks.{layer}.attn.hook_v", on_values(layer)),
            (f"blocks.{layer}.attn.hook_pattern", on_pattern(layer)),
        ]
    with model.hooks(*hooks):
        parts, _ = decompose(model, batch, readout, -1, True)
    if len(attention) < depth:
        raise ModelError(f"{model.name} computed no attention patterns; load it with eager attention (load_model does)")
    sites = range(depth + 1)
    every = torch.stack([attention[i] for i in range(depth)])
    return parts | {
        "cosine": torch.stack([ends[s] for s in sites]),
        "instruction": torch.stack([at_instruction[s][0] for s in sites]),
        "instruction_cosine": torch.stack([at_instruction[s][1] for s in sites]),
        "instruction_max": torch.stack([at_instruction[s][2] for s in sites]),
        "attention": torch.stack([every[layer, head] for layer, head in top]),
        "attention_all": every,
        "dominance": torch.stack([shares[i] for i in range(depth)]),
        "top_dominance": _share(torch.stack(top_parts).sum(0))[None],
    }


def _share(writes: Float[Tensor, "batch region d_model"]) -> Float[Tensor, "batch"]:
    """The suffix's share <Y_suffix, Y> / |Y|² of a write Y."""
    whole = writes.sum(1)
    return (writes[:, _SUFFIX] * whole).sum(-1) / (whole * whole).sum(-1).clamp_min(1e-30)


def split_drop(before: SourceContributions, after: SourceContributions) -> Split:
    """Take each head's change between two conditions of the same instructions apart (see ``Split``).

    Suffix tokens are matched from the first on; where one side has none or fewer, they are new tokens.
    """
    layers, heads, n, _ = before.values.shape
    new = torch.promote_types(before.values.dtype, torch.float32)
    moved = torch.zeros(layers, heads, len(REGIONS), n, dtype=new)
    changed = torch.zeros_like(moved)
    for i in range(n):
        for k, name in enumerate(REGIONS):
            (a, b), (c, d) = (side.bounds[i, k].tolist() for side in (before, after))
            if name != "suffix" and b - a != d - c:
                raise ModelError(
                    f"prompt {i}: {name} has {b - a} tokens in one condition and {d - c} in the other, so they cannot "
                    "be compared token by token"
                )
            width = max(b - a, d - c)
            w0, s0 = (_padded(x[:, :, i, a:b], width) for x in (before.pattern, before.values))
            w1, s1 = (_padded(x[:, :, i, c:d], width) for x in (after.pattern, after.values))
            # value = share / weight; a token without weight on one side has, for the split, the other side's value.
            v0 = torch.where(w0 > 0, s0 / w0.clamp_min(1e-300 if new == torch.float64 else 1e-38), 0)
            v1 = torch.where(w1 > 0, s1 / w1.clamp_min(1e-300 if new == torch.float64 else 1e-38), 0)
            v0, v1 = torch.where(w0 > 0, v0, v1), torch.where(w1 > 0, v1, v0)
            moved[:, :, k, i] = ((w0 - w1) * (v0 + v1) / 2).sum(-1)
            changed[:, :, k, i] = ((w0 + w1) * (v0 - v1) / 2).sum(-1)
    return Split(moved.sum(2), changed.sum(2), moved + changed)


def _padded(x: Float[Tensor, "layer head source"], width: int) -> Float[Tensor, "layer head width"]:
    return torch.nn.functional.pad(x, (0, width - x.shape[-1]))
