"""Replies with the KV cache."""

import math
from collections.abc import Callable
from itertools import takewhile
from typing import Any

import torch

from ..errors import PromptError, SettingError
from .chat import Tokens
from .prefixes import beginning, shared_length, shifted
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
    least = {"temperature": (temperature, 0), "max_new_tokens": (max_new_tokens, 1), "batch_size": (batch_size, 1)}
    for name, (value, lowest) in least.items():
        if not lowest <= value < math.inf:
            raise SettingError(f"{name} is {value}; it must be at least {lowest}")
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
        before = beginning(model, tokens, shared_length(model, tokens))
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            batch = tokens.take(rows)
            with running(model, batch):
                prefix = None if before is None else shifted(before, batch.mask)
                new = model.backend.generate(
                    batch.ids, batch.mask, max_new_tokens, model.eos_ids, model.chat.pad_id, temperature, prefix
                )
            for index, ids in zip(rows, new, strict=True):
                replies[index] = _text(model, list(takewhile(lambda token: token not in model.eos_ids, ids.tolist())))
            if on_batch:
                on_batch(len(batch))
    return [replies[i] for i in range(len(replies))]


def _text(model: Any, ids: list[int]) -> str:
    """Text of a reply without special tokens, but for those that mark a thought."""
    special, tokenizer = set(model.tokenizer.all_special_ids), model.tokenizer
    markers = ["".join(pair) for pair in model.chat.template.markers]
    kept = {i for i in special & set(ids) if any(tokenizer.decode([i]) in marker for marker in markers)}
    if kept:
        text = tokenizer.decode([i for i in ids if i in kept or i not in special])
    else:
        text = tokenizer.decode(ids, skip_special_tokens=True)
    end = model.turn_end[1]
    return text.partition(end)[0] if end else text


def end_tokens(tokenizer: Any, backend: Any, of_template: set[int]) -> list[int]:
    """Tokens that end a reply: the tokenizer's, the checkpoint's generation config's, and the template's."""
    ids = {tokenizer.eos_token_id} | backend.end_tokens() | of_template
    return sorted(int(i) for i in ids if i is not None)
