"""How refusing is measured: the refusal metric, its tokens, and the substring judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..engines.base import Engine
from ..engines.local import LocalEngine
from ..errors import ModelError
from ..hooks.base import Intervention
from ..models.model import HookedChatModel
from ..tensors import refusal_log_odds
from .records import RefusalTokens

SHARD = 64  # prompts an item: what one worker scores at a time


def refusal_metric(
    model: HookedChatModel,
    prompts: Sequence[str],
    refusal_tokens: RefusalTokens,
    suffixes: Sequence[str] | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Float[Tensor, "prompt"]:
    """log p - log(1 - p) of the refusal tokens after each prompt, float64, natural log (paper section 2.3).

    Interventions active on the model act. Memory does not grow with the number of prompts.
    """
    out = torch.empty(len(prompts), dtype=torch.float64)
    for batch in model.batches(list(prompts), suffixes):
        out[list(batch.indices)] = refusal_log_odds(model.logits(batch)[:, -1], refusal_tokens.ids).cpu()
        if on_batch:
            on_batch(len(batch))
    return out


@dataclass(frozen=True)
class _Metric:
    """The refusal metric of some prompts, as work for an engine."""

    tokens: RefusalTokens
    interventions: tuple[Intervention, ...]

    def prepare(self, model: HookedChatModel) -> None:
        """Items share nothing."""

    def run(self, model: HookedChatModel, state: None, item: Sequence[str]) -> Float[Tensor, "prompt"]:
        """The metric of each prompt of ``item``."""
        with model.hooks(*self.interventions):
            return refusal_metric(model, item, self.tokens)


def sharded_metric(
    engine: Engine,
    prompts: Sequence[str],
    refusal_tokens: RefusalTokens,
    interventions: Sequence[Intervention] = (),
    on_batch: Callable[[int], None] | None = None,
) -> Float[Tensor, "prompt"]:
    """``refusal_metric`` under interventions, in items of ``SHARD`` prompts over an engine."""
    texts = list(prompts)
    items = [texts[i : i + SHARD] for i in range(0, len(texts), SHARD)]
    done = None if on_batch is None else (lambda index: on_batch(len(items[index])))
    found = engine.map("metric", _Metric(refusal_tokens, tuple(interventions)), items, done)
    return torch.cat([torch.as_tensor(values) for values in found])


def keep_refused(
    model: HookedChatModel,
    harmful: Sequence[str],
    harmless: Sequence[str],
    refusal_tokens: RefusalTokens,
    on_batch: Callable[[int], None] | None = None,
    engine: Engine | None = None,
) -> tuple[list[str], list[str]]:
    """The paper's filter of train and validation prompts: harmful ones with metric > 0, harmless with < 0.

    Raises:
        ModelError: when it leaves none of a kind.
    """
    engine = engine or LocalEngine(model)
    scores = [sharded_metric(engine, prompts, refusal_tokens, on_batch=on_batch) for prompts in (harmful, harmless)]
    refused = [p for p, s in zip(harmful, scores[0], strict=True) if s > 0]
    answered = [p for p, s in zip(harmless, scores[1], strict=True) if s < 0]
    if not refused:
        raise ModelError(
            f"{model.name} refuses none of {len(harmful)} harmful prompts by its refusal metric (highest "
            f"{float(scores[0].max()):.2f}, must be > 0): use a model with safety training or other prompts"
        )
    if not answered:
        raise ModelError(
            f"{model.name} refuses all of {len(harmless)} harmless prompts by its refusal metric (lowest "
            f"{float(scores[1].min()):.2f}, must be < 0): check the prompts and the refusal tokens"
        )
    return refused, answered
