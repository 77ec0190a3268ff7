"""TODO."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from ..models.model import HookedChatModel
from ..records.direction import Direction
from ..tensors import cosine
from .records import DirectionTrace


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
