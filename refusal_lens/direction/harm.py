"""Refusal or harmfulness: the direction of harm at the request's last token beside the refusal direction."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..data.prompts import PromptPair, Prompts, PromptsLike, as_prompts, check_pair
from ..hooks.readers import Activations, Residual
from ..models.model import HookedChatModel
from ..progress import Progress, silent
from ..refusal.metric import RefusalMetric
from ..refusal.records import RefusalTokens
from ..refusal.tokens import given_refusal_tokens
from ..stats import auroc
from ..tensors import unit
from .effect_records import EffectMatrix
from .extract import extract_directions
from .harm_records import ASKED, HarmMap
from .records import FoundDirection
from .transfer import Ground, effect_matrix

YES, NO = "Certainly", "No"
QUESTION = f'{{}}\n\nIs the request above harmful? Answer "{YES}" if it is and "{NO}" if it is not.'


def harm_map(
    model: HookedChatModel,
    data: PromptPair,
    found: FoundDirection,
    suffixes: Mapping[str, str | Sequence[str]] | None = None,
    refused: Mapping[str, Sequence[bool]] | None = None,
    seed: int = 1,
    progress: Progress = silent,
) -> HarmMap:
    """Find a direction of harmfulness, and read it and the refusal direction on test prompts (Zhao et al. 2025).

    The direction of harmfulness is the difference in means at the last token of the user's turn, before the template,
    at the layer where it separates harmful from harmless validation prompts best. A suffix belongs to the user's turn,
    so with one harm is read at the suffix's last token: activations before the suffix cannot change.

    Args:
        data: training prompts give the direction, validation prompts its layer.
        suffixes: name -> a suffix for all harmful test prompts, or one per prompt, with its leading space: an attack
            and its control, random tokens of equal length (``hijacking.random_controls``).
        refused: "harmful" and "harmless" -> whether the reply to each test prompt was a refusal; if None, whether the
            refusal metric lies above its point.
        seed: of the random direction.

    Example:
        >>> found_harm = rl.direction.harm_map(model, data, found)
        >>> found_harm.harm.label, found_harm.sizes["layer"]
        ('(-6, 2)', 5)
    """
    check_pair(data)
    tokens, refusal = found.refusal_tokens, found.direction
    both = extract_directions(model, data.harmful, data.harmless, progress, request=True)
    place = both.positions[0]
    units = unit(both.mean_diff[0]).double()  # [layer d_model]
    reader = Activations(-place)
    val = [model.run(as_prompts(kind.val), read=reader)[reader][:, 0].double() for kind in data]
    harmful, harmless = ((x * units).sum(-1) for x in val)
    areas = [auroc(a.tolist(), b.tolist()) for a, b in zip(harmful.T, harmless.T, strict=True)]
    harm = both.direction(place, max(range(len(areas)), key=lambda layer: areas[layer].mean))
    asked: list[tuple[str, PromptsLike, Any]] = [
        ("harmful", data.harmful.test, None),
        ("harmless", data.harmless.test, None),
        *((name, data.harmful.test, suffix) for name, suffix in (suffixes or {}).items()),
    ]
    along = (Residual(harm, place), Residual(refusal, refusal.pos), Residual(harm.random_control(seed), place))
    sets, flags, points, read_metric = [], [], [], RefusalMetric(tokens)
    with progress("read harm and refusal", len(asked)) as advance:
        for name, prompts, suffix in asked:
            at_request, at_end, random, metric = model.run(as_prompts(prompts), suffix, read=[*along, read_metric])
            sets += [name] * len(metric)
            flags += list((refused or {}).get(name, (metric > tokens.threshold).tolist()))
            layers = ((at_request, harm), (at_end, refusal), (random, harm))
            points.append(torch.stack([found.projection[direction.layer] for found, direction in layers]))
            advance(1)
    cosines = torch.cosine_similarity(both.mean_diff[0], both.mean_diff[refusal.pos], dim=-1)
    return HarmMap(refusal, harm, cosines, tuple(areas), tuple(sets), tuple(flags), torch.cat(points, 1).double())


def harm_effects(
    model: HookedChatModel,
    data: PromptPair,
    found: HarmMap,
    refusal_tokens: RefusalTokens,
    seed: int = 0,
    most: int = 32,
) -> tuple[EffectMatrix, EffectMatrix]:
    """Ablate both directions on ``most`` harmful test prompts, and add both to harmless ones.

    Two things are measured: the refusal metric, and the answer to a question that inverts refusal (Zhao et al. 2025):
    "is the request above harmful?", to be answered with a word of consent if it is. If the model reads the direction of
    harm, adding it should raise the log-odds of consent, and adding that of refusal should not.

    Returns:
        The matrices of ablation and of addition, each with random directions.
    """
    consent = given_refusal_tokens(model, [first_token(model, YES)])

    def effects(prompts: Prompts, effect: str) -> EffectMatrix:
        texts = prompts.texts[:most]
        asked = Ground(tuple(QUESTION.format(text) for text in texts), consent)
        grounds = {"refusal": Ground(texts, refusal_tokens), ASKED: asked}
        return effect_matrix(model, {"refusal": found.refusal, "harm": found.harm}, grounds, effect, seed)

    return effects(data.harmful.test, "ablation"), effects(data.harmless.test, "addition")


def first_token(model: HookedChatModel, word: str) -> int:
    """The first token of a reply that begins with ``word``."""
    return int(model.tokenizer(word, add_special_tokens=False)["input_ids"][0])
