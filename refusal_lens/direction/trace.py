"""The residual stream along a direction, layer by layer."""

from collections.abc import Mapping

import torch

from ..data.prompts import PromptsLike, as_prompt_sets
from ..hooks.readers import Residual
from ..models.model import HookedChatModel
from ..progress import Progress, silent
from ..records.direction import DirectionLike, as_direction
from .records import DirectionTrace


def trace_direction(
    model: HookedChatModel,
    prompt_sets: Mapping[str, PromptsLike] | PromptsLike,
    direction: DirectionLike,
    progress: Progress = silent,
) -> DirectionTrace:
    """Measure cosine with and projection on r̂ of the last position at every layer, per prompt set (paper Fig. 5).

    All sets are cut to the size of the smallest, so that they stack.

    Example:
        >>> sets = {"harmful": data.harmful.test, "harmless": data.harmless.test}
        >>> trace = rl.direction.trace_direction(model, sets, found)
        >>> trace.sel(condition="harmful").cosine.mean(-1).argmax().item()  # the layer that aligns most
        4
    """
    direction, sets = as_direction(direction), as_prompt_sets(prompt_sets)
    model.check_direction(direction)
    n = min(len(prompts) for prompts in sets.values())
    reader = Residual(direction)
    with progress("trace the direction", n * len(sets)) as advance:
        found = [model.run(some[:n], read=reader, on_batch=advance)[reader] for some in sets.values()]
    cosines, projections = (torch.stack([getattr(x, name).float() for x in found]) for name in ("cosine", "projection"))
    return DirectionTrace(cosines, projections, tuple(sets), direction)
