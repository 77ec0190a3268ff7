"""Prompts packed into rows without padding; the prefix that all share is run once, as keys and values.

A mask lets every token see the shared prefix and its own prompt only, and position ids count from each prompt's own
start, so the logits are those of the prompts alone. What is saved against a padded batch: the padding, and the
template and system prompt of all prompts but one. Several interventions go through one pass as rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .backends import PrefixCache
from .chat import Tokens
from .model import SUM_TOLERANCE, HookedChatModel, take

# Longer rows save nothing and pay for attention between prompts, which the mask discards.
PACK_TOKENS = 256
# Rows of one pass together: room for eight of the longest rows. Half as many took 7% longer a candidate.
PASS_TOKENS = 2560


@dataclass(frozen=True)
class Pack:
    """Some prompts in one row, without what all of them share.

    Attributes:
        ids: the prompts' own tokens.
        positions: each token's position in its own prompt.
        mask: which token (first axis) sees which (second: the shared prefix, then these tokens).
        ends: index of each prompt's last token.
        indices: which prompts these are.
    """

    ids: Int[Tensor, "pos"]
    positions: Int[Tensor, "pos"]
    mask: Bool[Tensor, "pos seen"]
    ends: Int[Tensor, "prompt"]
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Packs:
    """All prompts of a set.

    Attributes:
        prefix: tokens that all share, a pack of no prompt; None where they share none.
        rows: the packs.
    """

    prefix: Pack | None
    rows: tuple[Pack, ...]

    def split(self, n: int) -> Iterator[slice]:
        """``n`` interventions in as few passes of ``PASS_TOKENS`` as they need, equal ones."""
        most = max(1, PASS_TOKENS // max(map(len, self.rows)))
        size = -(-n // max(1, -(-n // most)))
        return (slice(begin, min(n, begin + size)) for begin in range(0, n, max(1, size)))


def packs_of(tokens: Tokens, row_tokens: int = PACK_TOKENS) -> Packs:
    """All prompts, in the order given, in equally long rows of about ``row_tokens``."""
    rows = [ids[mask] for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]
    shared = common_prefix(rows, own=max(1, tokens.n_post))
    own = [len(row) - shared for row in rows]
    # Equal ones: a short last row would stream all weights for few tokens.
    total = sum(own)
    n = max(1, round(total / row_tokens))
    groups: list[list[int]] = [[] for _ in range(n)]
    before = 0
    for i, length in enumerate(own):
        groups[min(n - 1, int((before + length / 2) * n / total))].append(i)
        before += length
    packs = [_pack(rows, group, shared) for group in groups if group]
    if not shared:
        return Packs(None, tuple(packs))
    order = torch.arange(shared, device=tokens.ids.device)
    prefix = Pack(rows[0][:shared], order, order[:, None] >= order, order[-1:], ())
    return Packs(prefix, tuple(packs))


def common_prefix(rows: Sequence[Tensor], own: int = 1) -> int:
    """Number of first tokens that all rows share; each row keeps at least ``own`` tokens of its own."""
    if len(rows) < 2:
        return 0
    limit = max(0, min(len(row) for row in rows) - own)
    same = torch.stack([row[:limit] == rows[0][:limit] for row in rows]).all(0)
    return int(same.long().cumprod(0).sum())


def _pack(rows: Sequence[Tensor], group: Sequence[int], shared: int) -> Pack:
    device = rows[0].device
    own = [rows[i][shared:] for i in group]
    lengths = torch.tensor([len(x) for x in own], device=device)
    whose = torch.repeat_interleave(torch.arange(len(own), device=device), lengths)
    order = torch.arange(len(whose), device=device)
    sees = (whose[:, None] == whose[None]) & (order[:, None] >= order[None])
    prefix = torch.ones(len(whose), shared, dtype=torch.bool, device=device)
    positions = torch.cat([torch.arange(shared, shared + len(x), device=device) for x in own])
    return Pack(torch.cat(own), positions, torch.cat([prefix, sees], 1), lengths.cumsum(0) - 1, tuple(group))


Start = tuple[int, Float[Tensor, "1 pos d_model"]]


@torch.inference_mode()
def prefix_keys(model: HookedChatModel, packs: Packs, rows: int = 1, start: Start | None = None) -> PrefixCache | None:
    """Keys and values of the shared prefix in ``rows`` copies, which active hooks may treat differently.

    Args:
        start: (layer, the prefix's resid_pre there), as in ``packed_logits``.
    """
    if packs.prefix is None:
        return None
    with model.hooks():
        return model.backend.prefix_cache(packs.prefix.ids.expand(rows, -1), _copies(start, rows))


@torch.inference_mode()
def packed_logits(
    model: HookedChatModel,
    pack: Pack,
    rows: int = 1,
    start: Start | None = None,
    prefix: PrefixCache | None = None,
) -> Float[Tensor, "row prompt vocab"]:
    """Logits after each prompt of ``pack``, in ``rows`` copies of it, which active hooks may treat differently.

    Args:
        start: (layer, its resid_pre for the pack): restart there instead of at the embedding.
        prefix: from ``prefix_keys``, under the same interventions, with as many rows and the same start.
    """
    with model.hooks():
        return model.backend.packed_logits(
            pack.ids, pack.positions, pack.mask, pack.ends, rows, _copies(start, rows), prefix
        )


def _copies(start: Start | None, rows: int) -> tuple[int, Tensor] | None:
    return None if start is None else (start[0], start[1].expand(rows, -1, -1))


class _Enough(Exception):
    """Ends a pass whose remaining layers nobody reads."""


@torch.inference_mode()
def read_resid(
    model: HookedChatModel,
    pack: Pack,
    depth: int,
    read: Callable[[int, Tensor], None],
    prefix: PrefixCache | None = None,
) -> None:
    """``read(layer, resid_pre [1, pos, d_model])`` of the first ``depth`` layers; later layers are not run."""

    def at(layer: int) -> tuple[str, Callable]:
        def hook_fn(x: Tensor, hook: Any) -> None:
            read(layer, x)
            if layer == depth - 1:
                raise _Enough

        return f"blocks.{layer}.hook_resid_pre", hook_fn

    with suppress(_Enough), model.hooks(*[at(layer) for layer in range(depth)]):
        packed_logits(model, pack, prefix=prefix)


def packed_resid(
    model: HookedChatModel, pack: Pack, depth: int, prefix: PrefixCache | None = None
) -> list[Float[Tensor, "1 pos d_model"]]:
    """resid_pre of the first ``depth`` layers for every token of the pack."""
    kept: list[Tensor] = []
    read_resid(model, pack, depth, lambda _, x: kept.append(x.clone()), prefix)
    return kept


class RestartedPacks:
    """Packs with the residual streams that stand before an intervention, from which its pass restarts.

    Args:
        depth: resid_pre of this many first layers is kept; 0 where nothing restarts.
    """

    def __init__(self, model: HookedChatModel, packs: Packs, depth: int = 0):
        self.model, self.packs = model, packs
        self._prefix: list[Tensor] = []
        self._rows: list[list[Tensor]] = [[] for _ in packs.rows]
        if depth:
            if packs.prefix is not None:
                self._prefix = packed_resid(model, packs.prefix, depth)
            keys = prefix_keys(model, packs)
            self._rows = [packed_resid(model, pack, depth, keys) for pack in packs.rows]

    def logits(self, rows: int, start: int = 0) -> Iterator[tuple[Pack, Float[Tensor, "row prompt vocab"]]]:
        """Each pack and its logits in ``rows`` copies, under the active interventions, restarted at layer ``start``."""
        before = (start, self._prefix[start]) if start and self._prefix else None
        prefix = prefix_keys(self.model, self.packs, rows, before)
        for pack, resid in zip(self.packs.rows, self._rows, strict=True):
            yield pack, packed_logits(self.model, pack, rows, (start, resid[start]) if start else None, prefix)


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
        packs = packs_of(some, row_tokens=1 << 30)
        whole = RestartedPacks(model, packs, model.n_layers // 2 + 1)
        packed, restarted = (next(iter(whole.logits(1, start)))[1][0] for start in (0, model.n_layers // 2))
    except (TypeError, RuntimeError, IndexError):  # the model's forward takes no such mask or positions
        return False
    alone = torch.cat([model.logits(take(some, [i]))[:, -1] for i in range(len(some))]).double()
    limit = SUM_TOLERANCE.get(model.dtype, 1e-2) * float(alone.abs().max())
    return all(float((x.double() - alone).abs().max()) <= limit for x in (packed, restarted))
