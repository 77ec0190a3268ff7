"""Replies and suffix screening as work for an engine: cut alike on every engine, so with the same results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .engines import Engine
from .evaluation import Conditions, Edit, active
from .hijacking.screen import screen
from .model import HookedChatModel
from .records import Completion, Completions, RefusalTokens
from .scoring import is_refusal

REPLIES = 32  # prompts decoded together
SUFFIXES = 512  # of one prompt, in one item


@dataclass(frozen=True)
class _Replies:
    """Replies under one condition."""

    edits: tuple[Edit, ...]
    max_new_tokens: int

    def prepare(self, model: HookedChatModel) -> None:
        """Items share nothing."""

    def run(self, model: HookedChatModel, state: None, item: Sequence[str]) -> list[str]:
        """A reply to each prompt of ``item``."""
        with active(model, self.edits):
            return model.generate(item, self.max_new_tokens, batch_size=REPLIES)


def sharded_complete(
    engine: Engine,
    prompts: Sequence[str],
    conditions: Conditions,
    prompt_set: str,
    max_new_tokens: int = 64,
    judge: Callable[[str], bool] = is_refusal,
    on_batch: Callable[[int], None] | None = None,
) -> Completions:
    """``evaluation.complete`` in items of ``REPLIES`` prompts of similar length over an engine."""
    texts = list(prompts)
    lengths = engine.model.tokenize(texts).lengths.tolist()
    order = sorted(range(len(texts)), key=lambda i: lengths[i])
    groups = [order[i : i + REPLIES] for i in range(0, len(order), REPLIES)]
    items = [[texts[i] for i in group] for group in groups]
    done = None if on_batch is None else (lambda index: on_batch(len(groups[index])))
    found: list[Completion] = []
    for name, edits in conditions.items():
        replies: dict[int, str] = {}
        for group, some in zip(
            groups, engine.map(name, _Replies(tuple(edits), max_new_tokens), items, done), strict=True
        ):
            replies.update(zip(group, some, strict=True))
        found += [Completion(p, replies[i], name, judge(replies[i])) for i, p in enumerate(texts)]
    return Completions(tuple(found), prompt_set, max_new_tokens)


@dataclass(frozen=True)
class _Screen:
    """The refusal metric of a block of suffixes behind one prompt."""

    suffixes: tuple[str, ...]
    tokens: RefusalTokens

    def prepare(self, model: HookedChatModel) -> None:
        """Items share nothing."""

    def run(self, model: HookedChatModel, state: None, item: tuple[str, int]) -> Float[Tensor, "suffix"]:
        """Suffixes from ``item[1]`` on, behind the prompt ``item[0]``."""
        prompt, first = item
        return screen(model, [prompt], self.suffixes[first : first + SUFFIXES], self.tokens).metric[:, 0]


def sharded_screen(
    engine: Engine,
    prompts: Sequence[str],
    suffixes: Sequence[str],
    refusal_tokens: RefusalTokens,
    on_item: Callable[[int], None] | None = None,
) -> Float[Tensor, "suffix prompt"]:
    """Refusal metric of every suffix behind every prompt, in items of one prompt and ``SUFFIXES`` suffixes.

    Args:
        on_item: called with the number of (suffix, prompt) pairs done.
    """
    starts = range(0, len(suffixes), SUFFIXES)
    items = [(prompt, first) for prompt in prompts for first in starts]
    done = None if on_item is None else (lambda k: on_item(min(SUFFIXES, len(suffixes) - items[k][1])))
    found: list[Any] = engine.map("screen", _Screen(tuple(suffixes), refusal_tokens), items, done)
    columns = [torch.cat(found[i : i + len(starts)]) for i in range(0, len(found), len(starts))]
    return torch.stack(columns, 1)
