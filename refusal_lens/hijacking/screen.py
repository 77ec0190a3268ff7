"""The refusal metric of many suffixes behind the same instructions, the work on what they share done once.

All suffixes of one instruction share everything up to the instruction's end. Where the model's attention allows it
(``backend.supports_prefix``) these keys and values are computed once; elsewhere each prompt is run whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..chat import Encoded, Spans, Tokens
from ..linalg import refusal_log_odds
from ..model import HookedChatModel
from ..records import RefusalTokens


def screen(
    model: HookedChatModel,
    prompts: Sequence[str],
    suffixes: Sequence[str],
    refusal_tokens: RefusalTokens,
    on_prompt: Callable[[int], None] | None = None,
    batch_tokens: int = 2048,
) -> Float[Tensor, "suffix prompt"]:
    """Refusal metric of every suffix behind every prompt.

    Args:
        on_prompt: called with 1 after each prompt.
        batch_tokens: padded tokens a batch at most.
    """
    out = torch.empty(len(suffixes), len(prompts), dtype=torch.float64)
    for i, prompt in enumerate(prompts):
        encoded = [model.chat.encode(prompt, suffix) for suffix in suffixes]
        out[:, i] = metric_of(model, encoded, refusal_tokens, batch_tokens)
        if on_prompt:
            on_prompt(1)
    return out


def metric_of(
    model: HookedChatModel, encoded: Sequence[Encoded], refusal_tokens: RefusalTokens, batch_tokens: int = 2048
) -> Float[Tensor, "variant"]:
    """Refusal metric of variants of one prompt."""
    shared = _shared(encoded) if model.backend.supports_prefix else 0
    prefix = None
    if shared:
        prefix = model.prefix_cache(torch.tensor(encoded[0].ids[:shared], device=model.device))
    out = torch.empty(len(encoded), dtype=torch.float64)
    order = sorted(range(len(encoded)), key=lambda k: len(encoded[k].ids))
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * len(encoded[order[stop]].ids) <= batch_tokens:
            stop += 1
        rows = order[start:stop]
        batch = _batch(model, [encoded[k].ids[shared:] for k in rows])
        out[rows] = refusal_log_odds(model.logits(batch, prefix=prefix)[:, -1], refusal_tokens.ids).cpu()
        start = stop
    return out


def without_token(encoded: Encoded, k: int) -> Encoded:
    """The same prompt with the suffix's k-th token left out (as ids: nothing is tokenized again)."""
    spans = encoded.spans
    at = spans.suffix[0] + k
    shorter = Spans(
        spans.bos,
        spans.template_pre,
        spans.instruction,
        (spans.suffix[0], spans.suffix[1] - 1),
        (spans.template_post[0] - 1, spans.template_post[1] - 1),
    )
    offsets = encoded.offsets[:at] + encoded.offsets[at + 1 :]
    return replace(encoded, ids=encoded.ids[:at] + encoded.ids[at + 1 :], spans=shorter, offsets=offsets)


def _shared(encoded: Sequence[Encoded]) -> int:
    """Tokens that all variants begin with; at least one is left to each."""
    columns = zip(*(e.ids for e in encoded), strict=False)
    n = next((i for i, column in enumerate(columns) if len(set(column)) > 1), min(len(e.ids) for e in encoded))
    return min(n, min(len(e.ids) for e in encoded) - 1)


def _batch(model: HookedChatModel, rows: Sequence[tuple[int, ...]]) -> Tokens:
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), model.chat.pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row)
        mask[i, width - len(row) :] = True
    none = Spans((0, 0), (0, 0), (0, 0), (0, 0), (0, 0))  # logits alone are read: regions are not needed
    return Tokens(ids.to(model.device), mask.to(model.device), (none,) * len(rows), tuple(range(len(rows))))
