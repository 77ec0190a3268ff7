"""From which tokens a head's contribution comes, and how the direction travels over tokens and layers.

Everything is reduced inside the hooks: no tensor of layer x head x dest x src, nor of source x d_model per head,
outlives its layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import ModelError
from ..hooks.readout import Readout
from ..models.chat import Tokens
from ..models.model import HookedChatModel
from ..records.direction import Direction
from ..records.labels import REGIONS, Head
from ..tensors import wide
from .components import check_position, texts
from .token_records import AttentionPatterns, Propagation, SourceContributions

# Two roundings to the model's dtype, of the pattern and of z, with room for the sum between them.
SOURCES_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 5e-3}


def source_contributions(
    model: HookedChatModel,
    prompts: Sequence[str],
    direction: Direction,
    *,
    suffixes: Sequence[str] | None = None,
    pos: int = -1,
    check: bool = True,
) -> SourceContributions:
    """pattern[dest, src] · (v_src · W_O r̂) for every head and source token, at one destination.

    Grouped-query attention and post-norms included; sums over sources to ``head_contributions``.

    Args:
        model: the model.
        prompts: requests.
        direction: its unit vector is used.
        suffixes: one per prompt (with its leading space), or None.
        pos: the destination, counted from the end.
        check: verify that sources sum to z · W_O r̂.

    Raises:
        DirectionError: a direction of another model.
        ModelError: attention patterns are not computed, or sources do not sum to the head.
    """
    model.check_direction(direction)
    tokens = model.tokenize(prompts, suffixes)
    check_position(tokens, pos)
    readout = Readout.of(model, direction.unit)
    width = tokens.ids.shape[1]
    shape = (model.n_layers, model.n_heads, len(tokens), width)
    values = torch.zeros(shape, dtype=torch.promote_types(model.dtype, torch.float32))
    pattern = torch.zeros(shape, dtype=values.dtype)
    for batch in model.batches(tokens):
        found, weights = _sources_of(model, batch, readout, pos, check)
        rows, start = list(batch.indices), width - batch.ids.shape[1]
        values[:, :, rows, start:] = found.to(values)
        pattern[:, :, rows, start:] = weights.to(pattern)
    return SourceContributions(
        values, pattern, bounds_of(tokens), token_texts(model, tokens), texts(prompts, suffixes), direction, pos
    )


def _sources_of(
    model: HookedChatModel, batch: Tokens, readout: Readout, pos: int, check: bool
) -> tuple[Float[Tensor, "layer head batch src"], Float[Tensor, "layer head batch src"]]:
    """Contributions and patterns of one batch, on its device."""
    value_part: dict[int, Tensor] = {}
    written: dict[int, Tensor] = {}
    weights: dict[int, Tensor] = {}
    scales: dict[int, Tensor] = {}
    summed: dict[int, Tensor] = {}
    lengths: dict[int, Tensor] = {}
    sizes: dict[int, Tensor] = {}
    r = readout.vector

    def on_values(layer: int) -> Callable:
        def hook_fn(v: Tensor, hook: Any) -> None:
            v = v.reshape(*v.shape[:2], -1, model.d_head)
            per_group = model.n_heads // v.shape[2]
            vectors = readout.heads[layer].unflatten(0, (v.shape[2], per_group))
            # Each group of query heads shares one value head: no repeated copy of v is made.
            value_part[layer] = torch.einsum("bskd,kgd->kgbs", wide(v).to(r), vectors).flatten(0, 1)
            if check:
                length = wide(v).to(r).norm(dim=-1).permute(2, 0, 1)
                lengths[layer] = torch.einsum("kbs,kg->kgbs", length, vectors.norm(dim=-1)).flatten(0, 1)

        return hook_fn

    def on_pattern(layer: int) -> Callable:
        def hook_fn(p: Tensor, hook: Any) -> None:
            row = wide(p[:, :, pos]).to(r).transpose(0, 1)
            row = row * batch.mask  # the pattern of padding is not defined
            weights[layer] = row
            written[layer] = row * value_part.pop(layer)
            if check:
                sizes[layer] = (row * lengths.pop(layer)).sum(-1)

        return hook_fn

    def on_z(layer: int) -> Callable:
        def hook_fn(z: Tensor, hook: Any) -> None:
            heads = wide(z[:, pos].reshape(len(z), -1, model.d_head)).to(r)
            summed[layer] = torch.einsum("bhd,hd->hb", heads, readout.heads[layer])

        return hook_fn

    def on_scale(layer: int) -> Callable:
        def hook_fn(s: Tensor, hook: Any) -> None:
            scales[layer] = wide(s[:, pos, 0]).to(r)

        return hook_fn

    hooks: list[tuple[str, Callable]] = []
    for layer in range(model.n_layers):
        base = f"blocks.{layer}.attn"
        hooks += [(f"{base}.hook_v", on_values(layer)), (f"{base}.hook_pattern", on_pattern(layer))]
        hooks += [(f"{base}.hook_z", on_z(layer))] if check else []
        site = readout.scale_sites[layer]
        if site is not None:
            hooks.append((site, on_scale(layer)))
    _run_blocks(model, batch, hooks)
    if len(written) < model.n_layers:
        raise ModelError(
            f"{model.name} computed no attention pattern in {model.n_layers - len(written)} of {model.n_layers} "
            "layers; load it with eager attention (load_model does)"
        )
    if check:
        _check_sources(model, written, summed, sizes)
    for layer, scale in scales.items():
        written[layer] = written[layer] / scale[:, None]
    layers = range(model.n_layers)
    return torch.stack([written[i] for i in layers]), torch.stack([weights[i] for i in layers])


def _check_sources(
    model: HookedChatModel, written: dict[int, Tensor], summed: dict[int, Tensor], sizes: dict[int, Tensor]
) -> None:
    """Sources must sum to z · W_O r̂, relative to sum_s pattern[s] |v_s| |W_O r̂|.

    That length bounds the rounding of z whatever the order of the sum and however much of it cancels; the parts
    themselves do not, since values nearly orthogonal to W_O r̂ are rounded at their full length.
    """
    tolerance = SOURCES_TOLERANCE.get(model.dtype, 5e-3)
    for layer, parts in written.items():
        gap = float(((parts.sum(-1) - summed[layer]).abs() / sizes[layer].clamp_min(1e-30)).max())
        if not gap <= tolerance:
            raise ModelError(
                f"{model.name}, layer {layer}: sources miss the head's output by {gap:.2g} of their size (limit "
                f"{tolerance:g}); its values or patterns are changed after their hook points, so only "
                "head_contributions is exact here"
            )


def propagation(
    model: HookedChatModel,
    prompts: Sequence[str],
    direction: Direction,
    *,
    suffixes: Sequence[str] | None = None,
) -> Propagation:
    """The projection on r̂ at every layer and token, and what attention and MLP wrote there along r̂.

    Raises:
        DirectionError: a direction of another model.
    """
    model.check_direction(direction)
    tokens = model.tokenize(prompts, suffixes)
    depth, width = model.n_layers, tokens.ids.shape[1]
    dtype = torch.promote_types(model.dtype, torch.float32)
    grids = {
        "projection": torch.full((depth + 1, len(tokens), width), float("nan"), dtype=dtype),
        "attn": torch.full((depth, len(tokens), width), float("nan"), dtype=dtype),
        "mlp": torch.full((depth, len(tokens), width), float("nan"), dtype=dtype),
    }
    r = direction.unit.to(model.device, dtype)
    for batch in model.batches(tokens):
        rows, start = list(batch.indices), width - batch.ids.shape[1]

        def keep(what: str, layer: int, rows: list[int] = rows, start: int = start, batch: Tokens = batch) -> Callable:
            def hook_fn(x: Tensor, hook: Any) -> None:
                along = (wide(x).to(r) @ r).masked_fill(~batch.mask, float("nan"))
                grids[what][layer, rows, start:] = along.to(grids[what])

            return hook_fn

        hooks = [(f"blocks.{depth - 1}.hook_resid_post", keep("projection", depth))]
        for layer in range(depth):
            hooks.append((f"blocks.{layer}.hook_resid_pre", keep("projection", layer)))
            hooks.append((f"blocks.{layer}.hook_attn_out", keep("attn", layer)))
            hooks.append((f"blocks.{layer}.hook_mlp_out", keep("mlp", layer)))
        _run_blocks(model, batch, hooks)
    return Propagation(
        projection=grids["projection"],
        attn=grids["attn"],
        mlp=grids["mlp"],
        bounds=bounds_of(tokens),
        tokens=token_texts(model, tokens),
        prompts=texts(prompts, suffixes),
        direction=direction,
        post_labels=model.chat.post_labels(),
    )


def attention_patterns(
    model: HookedChatModel, prompt: str, heads: Sequence[Head], suffix: str = ""
) -> AttentionPatterns:
    """Attention patterns of a few heads on one prompt (all tokens to all tokens)."""
    tokens = model.tokenize([prompt], [suffix])
    layers = sorted({layer for layer, _ in heads})
    kept: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable:
        def hook_fn(p: Tensor, hook: Any) -> None:
            kept[layer] = wide(p[0]).cpu()

        return hook_fn

    _run_blocks(model, tokens, [(f"blocks.{layer}.attn.hook_pattern", keep(layer)) for layer in layers])
    if len(kept) < len(layers):
        raise ModelError(f"{model.name} computed no attention patterns; load it with eager attention (load_model does)")
    values = torch.stack([kept[layer][head] for layer, head in heads])
    shown = tuple((layer, head) for layer, head in heads)
    return AttentionPatterns(values, shown, token_texts(model, tokens)[0], prompt + suffix)


def _run_blocks(model: HookedChatModel, batch: Tokens, hooks: list[tuple[str, Callable]]) -> None:
    """Run the blocks with hooks; asking for the last block's output spares the unembedding."""
    with model.hooks(*hooks):
        model.cache(batch, [f"blocks.{model.n_layers - 1}.hook_resid_post"], positions=slice(-1, None))


def bounds_of(tokens: Tokens) -> Int[Tensor, "prompt region 2"]:
    """[start, stop) of each region on the padded axis."""
    bounds = torch.tensor([[getattr(span, name) for name in REGIONS] for span in tokens.spans])
    return bounds + (tokens.ids.shape[1] - tokens.lengths.cpu())[:, None, None]


def token_texts(model: HookedChatModel, tokens: Tokens) -> tuple[tuple[str, ...], ...]:
    """Text of each real token."""
    return tuple(
        tuple(model.tokenizer.decode([token]) for token in ids[mask].tolist())
        for ids, mask in zip(tokens.ids, tokens.mask, strict=True)
    )
