"""How much the chosen direction depends on the sample of training prompts (a bootstrap; not in the paper)."""

from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.prompts import PromptSet, PromptsLike
from ..errors import SelectionError
from ..hooks.readers import Activations
from ..models.model import HookedChatModel
from ..progress import Progress, silent
from ..records.direction import Direction
from ..refusal.records import RefusalTokens
from .extract import extract_directions
from .records import CandidateDirections, Stability
from .select import SelectionRule, select_direction


def prompt_activations(model: HookedChatModel, prompts: PromptsLike) -> Float[Tensor, "prompt pos layer d_model"]:
    """resid_pre of every prompt at its post-instruction positions and all layers, float32 on the CPU."""
    (found,) = model.run(prompts, read=Activations())
    return found.float()


def selection_stability(
    model: HookedChatModel,
    harmful: PromptSet,
    harmless: PromptSet,
    refusal_tokens: RefusalTokens,
    *,
    resamples: int = 20,
    seed: int = 0,
    rule: SelectionRule | None = None,
    relax: bool = True,
    progress: Progress = silent,
) -> Stability:
    """Resample the training prompts with replacement, extract and select; the model runs on them only once.

    Args:
        harmful, harmless: their training prompts are resampled; their validation prompts stay.
        relax: take the nearest candidate if none passes; otherwise such a resample counts as "none".
    """

    def winner(candidates: CandidateDirections) -> Direction:
        options: Any = {"refusal_tokens": refusal_tokens, "rule": rule, "relax": relax}
        return select_direction(model, candidates, harmful, harmless, **options).chosen

    with progress("resample the training prompts", resamples) as advance:
        whole = extract_directions(model, harmful, harmless)
        reference = winner(whole)
        activations = [prompt_activations(model, prompts.train) for prompts in (harmful, harmless)]
        generator, winners = torch.Generator().manual_seed(seed), []
        for _ in range(resamples):
            means = [_resampled_mean(x, generator) for x in activations]
            drawn = replace(whole, mean_diff=means[0] - means[1], harmful_mean=means[0], harmless_mean=means[1])
            with suppress(SelectionError):  # counted as "none"
                winners.append(winner(drawn))
            advance(1)
    relaxed = sum(bool(w.relaxed) for w in winners)
    return Stability(reference, tuple(winners), resamples, whole.n_harmful, whole.n_harmless, relaxed)


def _resampled_mean(x: Tensor, generator: torch.Generator) -> Float[Tensor, "pos layer d_model"]:
    """Mean over prompts drawn with replacement, as weights, so that no copy of the activations is made."""
    counts = torch.bincount(torch.randint(len(x), (len(x),), generator=generator), minlength=len(x))
    mean = torch.zeros(x.shape[1:], dtype=torch.float64)
    for value, count in zip(x, counts.tolist(), strict=True):
        if count:
            mean += count * value.double()
    return mean / len(x)
