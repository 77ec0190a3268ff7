"""Over-refusal: borderline prompts under every condition, and the direction of false refusal."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ..data.borderline import Borderline, load_borderline
from ..data.prompts import PromptPair, PromptsLike, check_pair
from ..direction.extract import mean_activations
from ..direction.records import FoundDirection
from ..hooks.conditions import named_conditions
from ..hooks.interventions import Ablate
from ..models.model import HookedChatModel
from ..progress import Progress, silent
from ..records.direction import Direction
from ..refusal.metric import refusal_metric
from ..refusal.replies import complete
from ..stats import rate
from ..tensors import cosine, project_out, unit
from .false_refusal_records import FALSE_REFUSAL, OverRefusal

SHOWN = ("baseline", "ablation", "random_ablation", "addition", "random_addition")


def false_refusal_direction(
    model: HookedChatModel, borderline: PromptsLike, found: FoundDirection
) -> tuple[Direction, float]:
    """Find the direction of false refusal at the refusal direction's position and layer (after Wang et al. 2024).

    It is the mean over borderline prompts minus the mean over the harmless training prompts, made orthogonal to r̂.

    Returns:
        The direction, and the cosine of the difference with r̂ before it was made orthogonal.

    Raises:
        DirectionError: nothing of the difference is left.

    Example:
        >>> false, before = rl.behaviour.false_refusal_direction(model, rl.load_borderline().train, found)
        >>> abs(false.cosine(found.direction)) < 1e-6, false.label == found.direction.label
        (True, True)
    """
    r, candidates = found.direction, found.candidates
    model.check_direction(r)
    place = candidates.positions.index(r.pos), r.layer
    difference = mean_activations(model, borderline)[place] - candidates.harmless_mean[place]
    own = project_out(difference.double(), unit(r.unit.double()))
    return replace(r, unit=unit(own).float(), norm=float(own.norm())), float(cosine(difference, r.unit))


def over_refusal(
    model: HookedChatModel,
    data: PromptPair,
    found: FoundDirection,
    borderline: Borderline | None = None,
    *,
    conditions: Sequence[str] = SHOWN,
    max_new_tokens: int = 64,
    seed: int = 1,
    progress: Progress = silent,
) -> OverRefusal:
    """Measure refusals of borderline prompts under every condition, and what ablating false refusal does.

    The direction of false refusal comes from the borderline training prompts. It is ablated on harmful, borderline and
    harmless test prompts, beside a random direction orthogonal to r̂ and beside the other conditions.

    Args:
        data: its test prompts are reported.
        borderline: from ``load_borderline``; the package's own 60 requests if None.
        conditions: of the refusal direction, some of ``hooks.conditions.CONDITIONS``.
        seed: of the random directions.

    Raises:
        RefusalLensError: data without splits, an unknown condition, or a direction of another model.

    Example:
        >>> few = rl.load_borderline(sizes=(4, 4))
        >>> result = rl.behaviour.over_refusal(model, data, found, few, conditions=["baseline"], max_new_tokens=4)
        >>> result.sets, result.conditions[1:]
        (('harmful', 'borderline', 'harmless'), ('false_refusal_ablation', 'random_false_refusal_ablation'))
    """
    check_pair(data)
    prompts = borderline or load_borderline()
    how: Any = {"form": found.selection.form, "statistics": found.candidates.statistics}
    names = list(dict.fromkeys(["baseline", *conditions]))
    edits = named_conditions(found.direction, names, seed, **how)
    false, before = false_refusal_direction(model, prompts.train, found)
    random, r = false.random_control(seed), found.direction.unit.double()
    random = replace(random, unit=unit(project_out(random.unit.double(), unit(r))).float())
    edits |= {FALSE_REFUSAL: [Ablate(false, **how)], f"random_{FALSE_REFUSAL}": [Ablate(random, **how)]}
    sets = {"harmful": data.harmful.test, "contrast": prompts.contrasts, "borderline": prompts.test}
    sets = {name: texts for name, texts in {**sets, "harmless": data.harmless.test}.items() if texts}
    tokens, metric = found.refusal_tokens, []
    with progress("measure the refusal metric", len(sets)) as advance:
        for texts in sets.values():
            metric.append(torch.stack([refusal_metric(model, texts, tokens, under=under) for under in edits.values()]))
            advance(1)
    said = (complete(model, texts, edits, name, max_new_tokens, progress=progress) for name, texts in sets.items())
    trained = rate((refusal_metric(model, prompts.train, tokens) > tokens.threshold).tolist())
    about = (found.direction, false, before, prompts.source, trained)
    return OverRefusal(*about, tuple(edits), tuple(said), torch.cat(metric, 1))
