"""Prompts packed into one row: the prefix that all share once, then each prompt's own tokens, no padding.

A mask lets every token see the shared prefix and its own prompt only, and position ids count from each prompt's own
start, so the logits are those of the prompts alone. What is saved against a padded batch: the padding, and the
template and system prompt of all prompts but one. Several interventions go through one pass as rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .chat import Tokens
from .model import SUM_TOLERANCE, HookedChatModel, take

# Longer rows save little more of the prefix and pay for attention between prompts, which the mask discards.
PACK_TOKENS = 256
PASS_TOKENS = 2048  # rows of one pass together


@dataclass(frozen=True)
class Pack:
    """Some prompts in one row.

    Attributes:
        ids: shared prefix, then the prompts' own tokens.
        positions: each token's position in its own prompt.
        mask: which token (first axis) sees which (second).
        ends: index of each prompt's last token.
        indices: which prompts these are.
    """

    ids: Int[Tensor, "pos"]
    positions: Int[Tensor, "pos"]
    mask: Bool[Tensor, "pos pos"]
    ends: Int[Tensor, "prompt"]
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def rows_per_pass(self) -> int:
        """How many interventions go through one pass."""
        return max(1, PASS_TOKENS // len(self))


def packs_of(tokens: Tokens, max_tokens: int = PACK_TOKENS) -> list[Pack]:
    """All prompts in rows of at most ``max_tokens`` (a longer prompt is a row of its own), in the order given."""
    rows = [ids[mask] for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]
    shared = common_prefix(rows)
    packs: list[Pack] = []
    group: list[int] = []
    used = shared
    for i, row in enumerate(rows):
        own = len(row) - shared
        if group and used + own > max_tokens:
            packs.append(_pack(rows, group, shared))
            group, used = [], shared
        group.append(i)
        used += own
    return [*packs, _pack(rows, group, shared)]


def common_prefix(rows: Sequence[Tensor]) -> int:
    """Number of first tokens that all rows share; each row keeps at least one token of its own."""
    if len(rows) < 2:
        return 0
    limit = min(len(row) for row in rows) - 1
    same = torch.stack([row[:limit] == rows[0][:limit] for row in rows]).all(0)
    return int(same.long().cumprod(0).sum())


def _pack(rows: Sequence[Tensor], group: Sequence[int], shared: int) -> Pack:
    device = rows[0].device
    ids, positions = [rows[group[0]][:shared]], [torch.arange(shared, device=device)]
    owner = [torch.full((shared,), -1, device=device)]
    for i in group:
        own = rows[i][shared:]
        ids.append(own)
        positions.append(torch.arange(shared, len(rows[i]), device=device))
        owner.append(torch.full((len(own),), i, device=device))
    whose = torch.cat(owner)
    order = torch.arange(len(whose), device=device)
    sees = (whose[:, None] == whose[None]) | (whose[None] == -1)
    ends = torch.tensor([len(x) for x in ids], device=device).cumsum(0)[1:] - 1
    return Pack(torch.cat(ids), torch.cat(positions), sees & (order[:, None] >= order[None]), ends, tuple(group))


@torch.inference_mode()
def packed_logits(
    model: HookedChatModel, pack: Pack, rows: int = 1, start: tuple[int, Float[Tensor, "1 pos d_model"]] | None = None
) -> Float[Tensor, "row prompt vocab"]:
    """Logits after each prompt of ``pack``, in ``rows`` copies of it, which active hooks may treat differently.

    Args:
        start: (layer, its resid_pre for the pack): restart there instead of at the embedding.
    """
    if start is not None:
        start = start[0], start[1].expand(rows, -1, -1)
    with model.hooks():
        return model.backend.packed_logits(pack.ids, pack.positions, pack.mask, pack.ends, rows, start)


class _Enough(Exception):
    """Ends a pass whose remaining layers nobody reads."""


@torch.inference_mode()
def read_resid(model: HookedChatModel, pack: Pack, depth: int, read: Callable[[int, Tensor], None]) -> None:
    """``read(layer, resid_pre [1, pos, d_model])`` of the first ``depth`` layers; later layers are not run."""

    def at(layer: int) -> tuple[str, Callable]:
        def hook_fn(x: Tensor, hook: Any) -> None:
            read(layer, x)
            if layer == depth - 1:
                raise _Enough

        return f"blocks.{layer}.hook_resid_pre", hook_fn

    with suppress(_Enough), model.hooks(*[at(layer) for layer in range(depth)]):
        packed_logits(model, pack)


def packed_resid(model: HookedChatModel, pack: Pack, depth: int) -> list[Float[Tensor, "1 pos d_model"]]:
    """resid_pre of the first ``depth`` layers for every token of the pack."""
    kept: list[Tensor] = []
    read_resid(model, pack, depth, lambda _, x: kept.append(x.clone()))
    return kept


_HOLDS: WeakKeyDictionary[HookedChatModel, bool] = WeakKeyDictionary()


def packing_holds(model: HookedChatModel, tokens: Tokens) -> bool:
    """Whether packed logits are those of the prompts alone on this model: measured on three prompts, once a model.

    Attention that reads anything but the mask and the position ids (ALiBi, windows, recurrences) would differ. Hooks
    that are active from outside may count positions, so with them the answer is no.
    """
    if not model.backend.supports_prefix or any(point.fwd_hooks for point in model.tl.hook_dict.values()):
        return False
    if model not in _HOLDS:
        _HOLDS[model] = _measure(model, tokens)
    return _HOLDS[model]


def _measure(model: HookedChatModel, tokens: Tokens) -> bool:
    by_length = sorted(range(len(tokens)), key=lambda i: int(tokens.lengths[i]))
    some = take(tokens, [by_length[0], by_length[len(by_length) // 2], by_length[-1]])
    try:
        (pack,) = packs_of(some, max_tokens=1 << 30)
        packed = packed_logits(model, pack)[0]
        middle = model.n_layers // 2
        restarted = packed_logits(model, pack, 1, (middle, packed_resid(model, pack, middle + 1)[middle]))[0]
    except (TypeError, RuntimeError, IndexError):  # the model's forward takes no such mask or positions
        return False
    alone = torch.cat([model.logits(take(some, [i]))[:, -1] for i in range(len(some))]).double()
    limit = SUM_TOLERANCE.get(model.dtype, 1e-2) * float(alone.abs().max())
    return all(float((x.double() - alone).abs().max()) <= limit for x in (packed, restarted))
