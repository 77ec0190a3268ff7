"""TODO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import count
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from ..errors import ModelError
from .weights import WeightAccess

HookFn = Callable[..., Any]
PrefixCache = list[tuple[Tensor, Tensor]]
_LEVELS = count(1_000_000)  # above the depths that TransformerLens counts by itself


class Backend(WeightAccess):
    """What the wrapper asks of a TransformerLens model.

    Args:
        tl: the TransformerLens model.
    """

    kind = ""
    supports_prefix = False

    def __init__(self, tl: Any):
        self.tl = tl
        tl.eval()
        cfg = tl.cfg
        self.n_layers, self.n_heads = int(cfg.n_layers), int(cfg.n_heads)
        self.d_model, self.d_head = int(cfg.d_model), int(cfg.d_head)
        self.d_vocab = int(self.unembed_weight().shape[-1])
        self.n_ctx = int(getattr(cfg, "n_ctx", None) or 0)
        self.hook_names = frozenset(self._hook_names())

    # -- names ----------------------------------------------------------------------------------------------
    def _hook_names(self) -> list[str]:
        return list(self.tl.hook_dict)

    def hooks(self, hooks: Sequence[tuple[str, HookFn]]) -> AbstractContextManager:
        """TransformerLens's own hook context."""
        return self.tl.hooks(fwd_hooks=list(hooks))

    def has_hook(self, name: str) -> bool:
        """Whether ``name`` is a hook point of this model (aliases included)."""
        return name in self.hook_names

    # -- running --------------------------------------------------------------------------------------------
    def logits(
        self,
        ids: Int[Tensor, "batch pos"],
        mask: Bool[Tensor, "batch pos"],
        last_only: bool = True,
        prefix: PrefixCache | None = None,
        start: tuple[int, Float[Tensor, "batch pos d_model"]] | None = None,
        prefix_mask: Bool[Tensor, "batch prefix"] | None = None,
    ) -> Float[Tensor, "batch kept vocab"]:
        """Logits of the last position, or of all.

        Args:
            ids: left-padded token ids, without the prefix's tokens.
            mask: True at real tokens.
            prefix: keys and values of what stands before (see ``prefix_cache``), common to all rows or a row each.
            prefix_mask: True at real tokens of the prefix, where it has padding.
            start: (layer, resid_pre of that layer): earlier blocks are skipped.
        """
        raise NotImplementedError

    def prefix_cache(
        self,
        ids: Int[Tensor, "*batch pos"],
        mask: Bool[Tensor, "batch pos"] | None = None,
    ) -> PrefixCache:
        """Keys and values of ``ids`` at every layer, for ``logits(prefix=...)``; ``mask`` where rows have padding."""
        raise ModelError(f"{self.kind} has no prefix cache here")

    def packed_logits(
        self,
        ids: Int[Tensor, "row pos"],
        positions: Int[Tensor, "row pos"],
        mask: Bool[Tensor, "row pos seen"],
        row: Int[Tensor, "prompt"],
        end: Int[Tensor, "prompt"],
        copies: int,
        start: tuple[int, Float[Tensor, "batch pos d_model"]] | None = None,
        prefix: SharedPrefix | None = None,
    ) -> Float[Tensor, "copy prompt vocab"]:
        """Logits at (``row``, ``end``) of rows that hold several prompts, in ``copies`` (see ``packing``).

        Args:
            ids, positions, mask, row, end: of one copy, as in ``packing.Pack``.
            copies: the batch is all rows of the first one, then of the second ...
            start: (layer, resid_pre of that layer), of the whole batch.
            prefix: takes the prefix's keys and values out of the first pass and puts them before every row.
        """
        raise ModelError(f"{self.kind} runs no packed prompts here")

    def attribution_patch(
        self, clean: Int[Tensor, "batch pos"], corrupt: Int[Tensor, "batch pos"], metric: Callable[[Tensor], Tensor]
    ) -> dict[tuple[int, int], float]:
        """TransformerLens's attribution patching: score of every (layer, head), summed over tokens."""
        raise ModelError(f"{self.kind} has no attribution patching; load the model as a TransformerBridge")

    def generate(
        self,
        ids: Int[Tensor, "batch pos"],
        mask: Bool[Tensor, "batch pos"],
        max_new_tokens: int,
        eos_ids: list[int],
        pad_id: int,
        temperature: float = 0.0,
    ) -> Int[Tensor, "batch new"]:
        """New tokens with the KV cache (greedy at temperature 0), padded with ``pad_id`` after an end token."""
        raise NotImplementedError


def _filled_cache(prefix: PrefixCache, rows: int) -> DynamicCache:
    """A cache of ``rows`` rows that a pass may add to; ``prefix`` itself is left as it is."""
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(prefix):
        cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
    return cache


class SharedPrefix(DynamicCache):
    """A cache whose first tokens come from the pass itself: the first row of each copy begins with them.

    What stands before all rows thus needs no pass of its own, which would be a small one. Later passes, over other rows
    of the same copies, find them here.

    Args:
        length: how many tokens.
    """

    def __init__(self, length: int):
        super().__init__()
        self.length, self.copies = length, 1
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Keys and values with the prefix before them; nothing else is kept."""
        new = [x.unflatten(0, (self.copies, -1)) for x in (key_states, value_states)]
        if layer_idx not in self._kept:
            keys, values = (x[:, :1, :, : self.length].clone() for x in new)
            self._kept[layer_idx] = keys, values
        return tuple(
            torch.cat([first.expand(-1, x.shape[1], -1, -1, -1), x], 3).flatten(0, 1)
            for first, x in zip(self._kept[layer_idx], new, strict=True)
        )


def _cache_as_past_key_values(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Give a bridge's attention the cache under the name it knows.

    transformers 5.24 hands ``cache`` down; transformer-lens up to 4.3 reads ``past_key_values`` and runs without a
    cache where it finds none: replies then forget their prompt, and nothing says so.
    """
    if "cache" in kwargs and kwargs.get("past_key_values") is None:
        kwargs = {name: x for name, x in kwargs.items() if name != "cache"} | {"past_key_values": kwargs["cache"]}
    return args, kwargs
