"""Effects of a direction on other prompt sets and behaviours, under system prompts and in the base model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ..data.prompts import PromptsLike, as_prompts
from ..errors import ModelError, PromptError, RefusalLensError
from ..hooks.conditions import named_conditions
from ..hooks.interventions import Ablate, Add
from ..models.model import HookedChatModel
from ..records.base import Record
from ..records.direction import Direction, DirectionLike, as_direction
from ..refusal.metric import refusal_metric
from ..refusal.records import RefusalTokens
from ..refusal.replies import complete
from ..stats import Interval, mean_interval
from .effect_records import EffectMatrix, SystemPrompts
from .records import DirectionTrace
from .trace import trace_direction


@dataclass(frozen=True)
class Ground(Record):
    """Prompts to test a direction on, and the tokens whose log-odds are the behaviour's metric."""

    prompts: tuple[str, ...]
    tokens: RefusalTokens


def effect_matrix(
    model: HookedChatModel,
    directions: Mapping[str, DirectionLike],
    grounds: Mapping[str, Ground],
    effect: str = "ablation",
    seed: int = 0,
) -> EffectMatrix:
    """Measure every direction on every ground: cross-effects of behaviours, transfer between prompt sets or languages.

    Args:
        directions, grounds: by label; all directions belong to ``model``.
        effect: "ablation" or "addition".
        seed: of the random controls.

    Raises:
        RefusalLensError: another effect.
    """
    if effect not in ("ablation", "addition"):
        raise RefusalLensError(f"the effect {effect!r} is not known; use 'ablation' or 'addition'")
    edit = Ablate if effect == "ablation" else Add
    known = {name: as_direction(d) for name, d in directions.items()}
    before = {name: refusal_metric(model, ground.prompts, ground.tokens) for name, ground in grounds.items()}

    def row(direction: Direction) -> tuple[Interval, ...]:
        with model.hooks(edit(direction)):
            after = {name: refusal_metric(model, ground.prompts, ground.tokens) for name, ground in grounds.items()}
        return tuple(mean_interval((after[name] - before[name]).tolist()) for name in grounds)

    change = tuple(row(d) for d in known.values())
    control = tuple(row(d.random_control(seed)) for d in known.values())
    baseline = tuple(mean_interval(values.tolist()) for values in before.values())
    units = [d.unit.double() for d in known.values()]
    cosines = tuple(tuple(float(a @ b) for b in units) for a in units)
    return EffectMatrix(effect, tuple(known), tuple(grounds), change, control, baseline, cosines)


def system_prompt_table(
    model: HookedChatModel,
    direction: DirectionLike,
    prompts: PromptsLike,
    systems: Sequence[str],
    conditions: Sequence[str] = ("baseline", "ablation", "random_ablation"),
    prompt_set: str = "harmful",
    max_new_tokens: int = 64,
    seed: int = 0,
) -> SystemPrompts:
    """Measure refusal rates under each system prompt, with the direction extracted without one.

    Args:
        systems: system prompts; "" for the template's own.

    Raises:
        ModelError: the chat template takes no system prompt.
    """
    direction, prompts = as_direction(direction), as_prompts(prompts)
    if not systems:
        raise PromptError("no system prompt was given")
    rates = []
    for system in systems:
        settings = {**model.chat.settings, "system": system or None}  # the same weights in another format
        twin = HookedChatModel(model.tl, model.tokenizer, model.name, check=False, **settings)
        edits = named_conditions(direction, conditions, seed)
        rates.append(complete(twin, prompts, edits, prompt_set, max_new_tokens).rates)
    return SystemPrompts(tuple(systems), prompt_set, tuple(rates))


def base_chat_trace(
    chat: HookedChatModel,
    base: HookedChatModel,
    direction: DirectionLike,
    prompt_sets: Mapping[str, PromptsLike] | PromptsLike,
) -> DirectionTrace:
    """Trace the chat model's direction in both models, on the chat model's template (paper appendix J, Fig. 24);
    ModelError for models of different shape or basis."""
    direction = as_direction(direction)
    for size in ("n_layers", "d_model", "d_vocab"):
        if getattr(chat, size) != getattr(base, size):
            raise ModelError(
                f"{chat.name} has {size} {getattr(chat, size)} and {base.name} {getattr(base, size)}: the base model "
                "must be the one that the chat model was tuned from"
            )
    chat.check_direction(direction)
    twin = HookedChatModel(base.tl, chat.tokenizer, base.name, check=False, **chat.chat.settings)
    own = trace_direction(chat, prompt_sets, direction)
    other = trace_direction(twin, prompt_sets, replace(direction, model=""))
    conditions = tuple(f"{who} {name}" for who in ("chat", "base") for name in own.conditions)
    cosine, projection = torch.cat([own.cosine, other.cosine]), torch.cat([own.projection, other.projection])
    return DirectionTrace(cosine, projection, conditions, direction)
