"""One direction, other ground: other prompt sets and behaviours, system prompts, the base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from .behaviour_records import SystemPrompts
from .chat import visible
from .direction_records import EffectMatrix
from .errors import ModelError, PromptError, RefusalLensError
from .evaluation import complete, named_conditions, refusal_rates, trace_direction
from .interventions import Ablate, Add
from .model import HookedChatModel
from .records import Direction, DirectionTrace, Record, RefusalTokens
from .scoring import refusal_metric
from .stats import Interval, mean_interval


@dataclass(frozen=True)
class Ground(Record):
    """Prompts on which a direction is tested, and the tokens whose log-odds is the behaviour's metric."""

    prompts: tuple[str, ...]
    tokens: RefusalTokens


def effect_matrix(
    model: HookedChatModel,
    directions: Mapping[str, Direction],
    grounds: Mapping[str, Ground],
    effect: str = "ablation",
    seed: int = 0,
) -> EffectMatrix:
    """Every direction on every ground: cross-effects of behaviours, or transfer between prompt sets and languages.

    Args:
        directions: by label, all of ``model``.
        grounds: by label.
        effect: "ablation" or "addition".
        seed: of the random controls.

    Raises:
        RefusalLensError: another effect.
    """
    if effect not in ("ablation", "addition"):
        raise RefusalLensError(f"the effect {effect!r} is not known; use 'ablation' or 'addition'")
    edit = Ablate if effect == "ablation" else Add
    before = {name: refusal_metric(model, ground.prompts, ground.tokens) for name, ground in grounds.items()}

    def row(direction: Direction) -> tuple[Interval, ...]:
        with model.hooks(edit(direction)):
            after = {name: refusal_metric(model, ground.prompts, ground.tokens) for name, ground in grounds.items()}
        return tuple(mean_interval((after[name] - before[name]).tolist()) for name in grounds)

    units = [d.unit.double() for d in directions.values()]
    return EffectMatrix(
        effect,
        tuple(directions),
        tuple(grounds),
        tuple(row(d) for d in directions.values()),
        tuple(row(d.random_control(seed)) for d in directions.values()),
        tuple(mean_interval(values.tolist()) for values in before.values()),
        tuple(tuple(float(a @ b) for b in units) for a in units),
    )


def system_prompt_table(
    model: HookedChatModel,
    direction: Direction,
    prompts: Sequence[str],
    systems: Sequence[str],
    conditions: Sequence[str] = ("baseline", "ablation", "random_ablation"),
    prompt_set: str = "harmful",
    max_new_tokens: int = 64,
    seed: int = 0,
) -> SystemPrompts:
    """The conditions under each system prompt; the direction stays the one found without.

    Args:
        systems: system prompts; "" leaves it to the template.

    Raises:
        ModelError: the chat template takes no system prompt.
    """
    if not systems:
        raise PromptError("no system prompt was given")
    rates = []
    for system in systems:
        # The same weights under another conversation format.
        twin = HookedChatModel(model.tl, model.tokenizer, model.name, system or None, check=False)
        if system and system not in twin.chat.before:
            raise ModelError(f"the chat template of {model.name} leaves the system prompt {system[:60]!r} out")
        edits = named_conditions(direction, conditions, seed)
        rates.append(refusal_rates(complete(twin, prompts, edits, prompt_set, max_new_tokens)))
    return SystemPrompts(tuple(systems), prompt_set, tuple(rates))


def base_chat_trace(
    chat: HookedChatModel, base: HookedChatModel, direction: Direction, prompt_sets: Mapping[str, Sequence[str]]
) -> DirectionTrace:
    """Cosine of the chat model's direction with both models' last position, by layer (paper appendix J, Fig. 24).

    Both read the chat model's template.

    Raises:
        ModelError: models of different shape or basis.
    """
    for size in ("n_layers", "d_model", "d_vocab"):
        if getattr(chat, size) != getattr(base, size):
            raise ModelError(
                f"{chat.name} has {size} {getattr(chat, size)} and {base.name} {getattr(base, size)}: the base model "
                "must be the one that the chat model was tuned from"
            )
    chat.check_direction(direction)
    twin = HookedChatModel(base.tl, chat.tokenizer, base.name, chat.chat.system, check=False)
    traces = {
        "chat": trace_direction(chat, prompt_sets, direction),
        "base": trace_direction(twin, prompt_sets, replace(direction, model="")),
    }
    return DirectionTrace(
        torch.cat([t.cosine for t in traces.values()]),
        torch.cat([t.projection for t in traces.values()]),
        tuple(f"{who} {name}" for who, t in traces.items() for name in t.conditions),
        direction,
    )


def behaviour_tokens(
    model: HookedChatModel, positive: Sequence[str], negative: Sequence[str], top: int = 2
) -> RefusalTokens:
    """Tokens whose probability as a reply's first token is raised most by ``positive`` against ``negative`` prompts:
    the metric of a behaviour that has no phrases of its own.

    Raises:
        ModelError: no token is raised.
    """
    means = [model.last_logits(list(p)).double().softmax(-1).mean(0) for p in (positive, negative)]
    best = (means[0] - means[1]).topk(top)
    ids = [i for i, rise in zip(best.indices.tolist(), best.values.tolist(), strict=True) if rise > 0]
    if not ids:
        raise ModelError(f"{model.name} begins its replies to both kinds of prompts alike: no token tells them apart")
    texts = tuple(visible(model.tokenizer.decode([i])) for i in ids)
    shares = tuple(float(means[0][i]) for i in ids)
    return RefusalTokens(tuple(ids), texts, shares, f"first tokens raised by {len(positive)} prompts of the behaviour")
