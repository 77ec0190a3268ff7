"""Large attention maps, made small enough to draw and to read."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

MAX_TOKENS = 96  # a map of 96 x 96 is 9216 cells: readable, and quick to draw


def thinned(
    values: Float[Tensor, "*heads dest src"], tokens: tuple[str, ...], limit: int = MAX_TOKENS
) -> tuple[Float[Tensor, "*heads rows columns"], tuple[str, ...], str]:
    """The map with neighbouring tokens taken together, their labels, and a notice ("" if nothing was done).

    Attention is summed over the source tokens of a group and averaged over its destination tokens, so that each row
    still adds up to 1.
    """
    n = len(tokens)
    if n <= limit:
        return values, tokens, ""
    step = -(-n // limit)
    groups = [slice(start, min(start + step, n)) for start in range(0, n, step)]
    rows = torch.stack([values[..., group, :].mean(-2) for group in groups], -2)
    small = torch.stack([rows[..., group].sum(-1) for group in groups], -1)
    labels = tuple(tokens[g.start] + ("…" if g.stop - g.start > 1 else "") for g in groups)
    return small, labels, f"{n} tokens, thinned: {step} neighbours together (summed over sources, mean over readers)"
