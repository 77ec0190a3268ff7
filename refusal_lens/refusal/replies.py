"""Replies and suffix screening as work for an engine: cut alike on every engine, so with the same results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..engines.base import Engine
from ..errors import ModelError
from ..hooks.base import Intervention
from ..hooks.conditions import Conditions
from ..models.model import HookedChatModel
from ..stats import Rate, rate
from .phrases import is_refusal
from .records import Completion, Completions


def check_finite(model: HookedChatModel, prompts: Sequence[str], condition: str) -> None:
    """Refuse to go on from NaN or infinite logits: greedy decoding would turn them into some token, silently.

    Raises:
        ModelError: naming the condition and the first such prompt.
    """
    for prompt, row in zip(prompts, model.last_logits(list(prompts)), strict=True):
        if not bool(torch.isfinite(row).all()):
            raise ModelError(
                f"{model.name} gives NaN or infinite logits under {condition} for the prompt {prompt[:60]!r}: load it "
                "in bfloat16 or float32 (float16 overflows), or use a smaller coefficient"
            )


def complete(
    model: HookedChatModel,
    prompts: Sequence[str],
    conditions: Conditions,
    prompt_set: str,
    max_new_tokens: int = 64,
    judge: Callable[[str], bool] = is_refusal,
    on_batch: Callable[[int], None] | None = None,
) -> Completions:
    """Greedy replies to ``prompts`` under each condition, judged.

    Args:
        conditions: name -> interventions (see ``hooks.named_conditions``).
        prompt_set: label of the prompts, e.g. "harmful".
        max_new_tokens: the paper uses 512; a refusal shows in the first few dozen.
        judge: reply -> refused; the paper's substrings by default.
    """
    items = []
    for name, interventions in conditions.items():
        with model.hooks(*interventions):
            replies = model.generate(list(prompts), max_new_tokens, on_batch=on_batch)
        items += [Completion(p, r, name, judge(r)) for p, r in zip(prompts, replies, strict=True)]
    return Completions(tuple(items), prompt_set, max_new_tokens)


def refusal_rates(completions: Completions) -> dict[str, Rate]:
    """Share of refused replies by condition, with 95% Clopper-Pearson intervals."""
    return {c: rate([item.refused for item in completions.of(c)]) for c in completions.conditions}


REPLIES = 32  # prompts decoded together


@dataclass(frozen=True)
class _Replies:
    """Replies under one condition."""

    edits: tuple[Intervention, ...]
    max_new_tokens: int

    def prepare(self, model: HookedChatModel) -> None:
        """Items share nothing."""

    def run(self, model: HookedChatModel, state: None, item: Sequence[str]) -> list[str]:
        """A reply to each prompt of ``item``."""
        with model.hooks(*self.edits):
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
