"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from .chat import Tokens

# Of one batch on a CPU: about what another pass costs. On a GPU a pass costs more than any padding.
PADDING_TOKENS = 96


def take(tokens: Tokens, rows: Sequence[int]) -> Tokens:
    """Some rows of ``tokens``, with the padding they share removed."""
    index = torch.as_tensor(list(rows), device=tokens.ids.device)
    ids, mask = tokens.ids[index], tokens.mask[index]
    start = ids.shape[1] - int(mask.sum(-1).max())
    return Tokens(
        ids[:, start:],
        mask[:, start:],
        tuple(tokens.spans[i] for i in rows),
        tuple(tokens.indices[i] for i in rows),
    )


def numbered(tokens: Tokens) -> Tokens:
    """The same batch as prompts of its own, counted from 0: for interventions with values for its rows."""
    return replace(tokens, indices=tuple(range(len(tokens))))
