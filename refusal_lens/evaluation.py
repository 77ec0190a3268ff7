"""What the model says under each condition, and how often it refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from .interventions import Ablate, Add, Intervention
from .linalg import cosine
from .model import HookedChatModel
from .records import Completion, Completions, Direction, DirectionTrace
from .scoring import is_refusal
from .stats import Rate, rate

Conditions = Mapping[str, Sequence[Intervention]]


def necessity_conditions(direction: Direction, seed: int = 0) -> dict[str, list[Intervention]]:
    """Baseline, ablation and its placebo, for harmful prompts: is the direction necessary for refusing?"""
    return {
        "baseline": [],
        "ablation": [Ablate(direction)],
        "random_ablation": [Ablate(direction.random_control(seed))],
    }


def sufficiency_conditions(direction: Direction, seed: int = 0) -> dict[str, list[Intervention]]:
    """Baseline, addition and its placebo, for harmless prompts: is the direction sufficient for refusing?"""
    return {
        "baseline": [],
        "addition": [Add(direction)],
        "random_addition": [Add(direction.random_control(seed))],
    }


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
        conditions: name -> interventions (see ``necessity_conditions``).
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


def trace_direction(
    model: HookedChatModel, prompt_sets: Mapping[str, Sequence[str]], direction: Direction
) -> DirectionTrace:
    """Cosine and projection of the last position on r̂ at every layer, for each set of prompts (paper Fig. 5).

    All sets are cut to the length of the shortest, so that they stack.
    """
    model.check_direction(direction)
    n = min(len(prompts) for prompts in prompt_sets.values())
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.n_layers)]
    names.append(f"blocks.{model.n_layers - 1}.hook_resid_post")
    shape = (len(prompt_sets), len(names), n)
    cosines, projections = torch.empty(shape), torch.empty(shape)
    for c, prompts in enumerate(prompt_sets.values()):
        for batch in model.batches(list(prompts)[:n]):
            cached = model.cache(batch, names, positions=slice(-1, None))
            for layer, name in enumerate(names):
                x = cached[name][:, 0].float()
                cosines[c, layer, list(batch.indices)] = cosine(x, direction.unit).cpu()
                projections[c, layer, list(batch.indices)] = (x @ direction.unit.to(x)).cpu()
    return DirectionTrace(cosines, projections, tuple(prompt_sets), direction)
