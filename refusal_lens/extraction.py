"""Difference-in-means directions at every post-instruction position and layer (paper section 2.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from .model import HookedChatModel
from .records import CandidateDirections


def mean_activations(
    model: HookedChatModel, prompts: Sequence[str], on_batch: Callable[[int], None] | None = None
) -> Float[Tensor, "pos layer d_model"]:
    """Mean resid_pre at the post-instruction positions, accumulated in float64.

    Memory is one batch and one running sum, whatever the number of prompts.
    """
    total: Tensor | None = None
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.n_layers)]
    for batch in model.batches(list(prompts)):
        cached = model.cache(batch, names, positions=slice(-batch.n_post, None))
        sums = torch.stack([cached[name].double().sum(0) for name in names], dim=1).cpu()
        total = sums if total is None else total + sums
        if on_batch:
            on_batch(len(batch))
    assert total is not None  # batches() refuses an empty list
    return total / len(prompts)


def extract_directions(
    model: HookedChatModel,
    harmful: Sequence[str],
    harmless: Sequence[str],
    on_batch: Callable[[int], None] | None = None,
) -> CandidateDirections:
    """Mean over harmful minus mean over harmless, for every post-instruction position and layer.

    Args:
        model: the chat model.
        harmful, harmless: requests (the training split).
        on_batch: called with the number of prompts done after each batch.
    """
    means = [mean_activations(model, prompts, on_batch) for prompts in (harmful, harmless)]
    return CandidateDirections(
        mean_diff=means[0] - means[1],
        harmful_mean=means[0],
        harmless_mean=means[1],
        pos_labels=model.chat.post_labels(),
        n_harmful=len(harmful),
        n_harmless=len(harmless),
        basis=model.basis,
        model=model.fingerprint,
    )
