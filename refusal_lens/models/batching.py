"""How prompts are run: batches of similar length, or rows that hold several prompts each."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from ..hooks.base import Model
from .backend import SharedPrefix
from .chat import Tokens
from .packing import Pack, pack_tokens, packed_logits, packing_holds, shared_prefix

# Of one batch on a CPU: about what another pass costs. On a GPU a pass costs more than any padding.
PADDING_TOKENS = 96


class Pass(NamedTuple):
    """Prompts that are run together: ``logits`` does it, under the hooks active then, and gives next-token logits."""

    batch: Tokens | Pack
    logits: Callable[[], Float[Tensor, "prompt vocab"]]


def plan(model: Model, tokens: Tokens, pack: bool = False) -> Iterator[Pass]:
    """The passes that all prompts need; with ``pack``, packed ones if they give the same results on this model."""
    if not pack or not packing_holds(model):
        for batch in length_batches(tokens):
            yield Pass(batch, partial(_padded_last, model, batch))
        return
    whole = pack_tokens(tokens, model.chat.pad_id)
    prefix = shared_prefix(whole)
    for some in whole.passes():
        rows = whole.rows(some)
        yield Pass(rows, partial(_packed_last, model, rows, prefix))


def _padded_last(model: Model, batch: Tokens) -> Tensor:
    return model.backend.logits(batch.ids, batch.mask)[:, -1]


def _packed_last(model: Model, rows: Pack, prefix: SharedPrefix | None) -> Tensor:
    return packed_logits(model, rows, prefix=prefix)[0]


def length_batches(tokens: Tokens, max_tokens: int = 2048) -> Iterator[Tokens]:
    """Prompts in batches of similar length, of at most ``max_tokens`` padded tokens (always at least one prompt).

    On a CPU a batch ends before its padding reaches ``PADDING_TOKENS``, too.
    """
    room = PADDING_TOKENS if tokens.ids.device.type == "cpu" else math.inf

    def fits(n: int, width: int, real: int) -> bool:
        return n * width <= max_tokens and (n - 1) * width - real <= room

    for rows in by_length(tokens.lengths.tolist(), fits):
        yield tokens.take(rows)


def by_length(lengths: Sequence[int], fits: Callable[[int, int, int], bool]) -> Iterator[list[int]]:
    """Indices in groups of similar length, the shortest first; ``fits`` of the number in a group, its longest and the
    real tokens of the others says whether the longest may join them (the first always does)."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    start = 0
    while start < len(order):
        stop, real = start + 1, lengths[order[start]]
        while stop < len(order) and fits(stop + 1 - start, lengths[order[stop]], real):
            real += lengths[order[stop]]
            stop += 1
        yield order[start:stop]
        start = stop


def numbered(tokens: Tokens) -> Tokens:
    """The same batch as prompts of its own, counted from 0: for interventions with values for its rows."""
    return replace(tokens, indices=tuple(range(len(tokens))))
