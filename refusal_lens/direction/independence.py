"""Representational independence: does ablating one direction move the other? (Wollschläger et al. 2025)"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.prompts import PromptsLike, as_prompts
from ..hooks.interventions import Ablate
from ..hooks.readers import Activations
from ..models.model import HookedChatModel
from ..records.direction import DirectionLike, as_direction
from ..tensors import cosine
from .cone_records import Independence


def representational_independence(
    model: HookedChatModel,
    directions: Mapping[str, DirectionLike],
    prompts: PromptsLike,
    seed: int = 0,
) -> Independence:
    """Ablate each direction, and a random one, and read how the stream's cosine with each changes, layer by layer.

    Args:
        directions: by label; for the basis of a cone, one per vector. The first is what they stand beside.
        prompts: held-out harmful prompts, read at their last token.
        seed: of the random direction.

    Example:
        >>> two = {"r": found, "random": found.direction.random_control(1)}
        >>> rl.direction.representational_independence(model, two, data.harmful.test).ablations
        ('r', 'random', 'placebo')
    """
    texts, reader = as_prompts(prompts), Activations(1)
    known = {name: as_direction(d) for name, d in directions.items()}
    first = next(iter(known.values()))

    def cosines(*under: Any) -> Float[Tensor, "read layer prompt"]:
        x = model.run(texts, read=reader, under=under)[reader][:, 0].double()  # [prompt layer d_model]
        return torch.stack([cosine(x, d.unit.double()).T for d in known.values()])

    before = cosines()
    ablated = {**known, "placebo": first.random_control(seed)}
    units = torch.stack([d.unit.double() for d in known.values()])
    change = torch.stack([cosines(Ablate(d)) - before for d in ablated.values()])
    return Independence(tuple(known), tuple(ablated), before, change, units @ units.T, first)
