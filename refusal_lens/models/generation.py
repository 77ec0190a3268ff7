"""Replies with the KV cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import PromptError
from .chat import Tokens
from .running import running


def generate(
    model: Any,
    tokens: Tokens,
    max_new_tokens: int,
    on_batch: Callable[[int], None] | None,
    batch_size: int,
    temperature: float,
    seed: int,
) -> list[str]:
    """``HookedChatModel.generate`` for tokens, under the lock."""
    if model.n_ctx and tokens.ids.shape[1] + max_new_tokens > model.n_ctx:
        raise PromptError(
            f"{tokens.ids.shape[1]} prompt tokens and {max_new_tokens} new ones exceed the context of "
            f"{model.n_ctx}: ask for fewer new tokens"
        )
    lengths = tokens.lengths.tolist()
    order = sorted(range(len(tokens)), key=lambda i: lengths[i])
    replies: dict[int, str] = {}
    with model.exclusive(), torch.random.fork_rng(enabled=temperature > 0):
        if temperature > 0:
            torch.manual_seed(seed)
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            batch = tokens.take(rows)
            with running(model, batch):
                new = model.backend.generate(
                    batch.ids, batch.mask, max_new_tokens, model.eos_ids, model.chat.pad_id, temperature
                )
            for index, ids in zip(rows, new, strict=True):
                replies[index] = model.tokenizer.decode(_until_end(model, ids), skip_special_tokens=True)
            if on_batch:
                on_batch(len(batch))
    return [replies[i] for i in range(len(replies))]


def _until_end(model: Any, row: Tensor) -> list[int]:
    ids = row.tolist()
    ends = [i for i, token in enumerate(ids) if token in model.eos_ids]
    return ids[: ends[0]] if ends else ids


def end_tokens(tokenizer: Any, backend: Any) -> list[int]:
    """Tokens that end a reply: the tokenizer's and the checkpoint's generation config's."""
    ids = {tokenizer.eos_token_id} | backend.end_tokens()
    return sorted(int(i) for i in ids if i is not None)
