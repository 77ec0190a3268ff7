"""What the model says under each condition, and how often it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch

from .errors import ModelError, RefusalLensError
from .interventions import Ablate, Add, Intervention
from .linalg import cosine
from .model import HookedChatModel
from .orthogonalization import Orthogonalize
from .records import Completion, Completions, Direction, DirectionTrace
from .scoring import is_refusal
from .stats import Rate, rate

Edit = Intervention | Orthogonalize
Conditions = Mapping[str, Sequence[Edit]]
EFFECTS = ("ablation", "addition", "subtraction", "orthogonalized")
CONDITIONS = ("baseline", *EFFECTS, *(f"random_{name}" for name in EFFECTS))


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


def named_conditions(
    direction: Direction, names: Sequence[str] = CONDITIONS, seed: int = 0, allow_gap: bool = False
) -> dict[str, list[Edit]]:
    """Conditions by name, each ``random_`` one with a random direction of equal norm (paper sections 2.4, 3, I.1).

    Args:
        direction: the direction; ``subtraction`` adds -r at its layer, the others are the paper's.
        names: some of ``CONDITIONS``.
        seed: of the random direction.
        allow_gap: let ``orthogonalized`` run on a model with post-norms (``orthogonalization.orthogonalized``).

    Raises:
        RefusalLensError: an unknown condition.
    """
    found: dict[str, list[Edit]] = {}
    for name in names:
        if name not in CONDITIONS:
            raise RefusalLensError(f"there is no condition {name!r}; choose from {', '.join(CONDITIONS)}")
        r = direction.random_control(seed) if name.startswith("random_") else direction
        edits: dict[str, list[Edit]] = {
            "baseline": [],
            "ablation": [Ablate(r)],
            "addition": [Add(r)],
            "subtraction": [Add(r, -1.0)],
            "orthogonalized": [Orthogonalize(r, allow_gap)],
        }
        found[name] = edits[name.removeprefix("random_")]
    return found


@contextmanager
def active(model: HookedChatModel, edits: Sequence[Edit]) -> Iterator[HookedChatModel]:
    """Interventions and weight edits of one condition, active inside (weights first, then hooks)."""
    with ExitStack() as stack:
        for edit in edits:
            if isinstance(edit, Orthogonalize):
                stack.enter_context(edit.applied(model))
        stack.enter_context(model.hooks(*(e for e in edits if not isinstance(e, Orthogonalize))))
        yield model


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
        conditions: name -> interventions (see ``necessity_conditions``).
        prompt_set: label of the prompts, e.g. "harmful".
        max_new_tokens: the paper uses 512; a refusal shows in the first few dozen.
        judge: reply -> refused; the paper's substrings by default.
    """
    items = []
    for name, interventions in conditions.items():
        with active(model, interventions):
            replies = model.generate(list(prompts), max_new_tokens, on_batch=on_batch)
        items += [Completion(p, r, name, judge(r)) for p, r in zip(prompts, replies, strict=True)]
    return Completions(tuple(items), prompt_set, max_new_tokens)


def refusal_rates(completions: Completions) -> dict[str, Rate]:
    """Share of refused replies by condition, with 95% Clopper-Pearson intervals."""
    return {c: rate([item.refused for item in completions.of(c)]) for c in completions.conditions}


def trace_direction(
    model: HookedChatModel,
    prompt_sets: Mapping[str, Sequence[str]],
    direction: Direction,
    on_batch: Callable[[int], None] | None = None,
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
            if on_batch:
                on_batch(len(batch))
    return DirectionTrace(cosines, projections, tuple(prompt_sets), direction)
