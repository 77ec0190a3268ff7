"""What all prompts of a batch begin with, run once: system prompt and template before the requests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import ModelError
from .backend import PrefixCache
from .chat import Tokens
from .health import n_hooks
from .packing import common_prefix

LEAST_SAVED = 128  # tokens; fewer are not worth a pass of their own


def shared_length(model: Any, tokens: Tokens) -> int:
    """Tokens before the requests that all rows share; 0 where running them once saves little, or where something that
    acts on the passes may count positions."""
    if not model.backend.supports_prefix or model.counts_positions or n_hooks(model.tl) > model.n_interventions:
        return 0
    rows = [ids[mask] for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]
    shared = min(common_prefix(rows), *(span.instruction[0] for span in tokens.spans))
    return shared if (len(rows) - 1) * shared >= LEAST_SAVED else 0


def beginning(model: Any, tokens: Tokens, shared: int) -> PrefixCache | None:
    """Keys and values of the first ``shared`` tokens of every row, under the active interventions.

    None for 0, and where the model keeps none (MPT under some versions of transformers).
    """
    try:
        return model.prefix_cache(tokens.ids[0][tokens.mask[0]][:shared]) if shared else None
    except ModelError:
        return None


def shifted(prefix: PrefixCache, mask: Bool[Tensor, "batch pos"]) -> PrefixCache:
    """The first columns of a left-padded batch: in each row its padding, then the prefix as far as it goes.

    Every token keeps its place in the batch, so whatever counts places counts as without the cache.
    """
    place = torch.arange(prefix[0][0].shape[2], device=mask.device) - (~mask).sum(-1, keepdim=True)
    index = place.clamp_min(0)  # padding is masked, whatever stands there
    return [
        tuple(x[0][:, index.to(x.device)].transpose(0, 1).contiguous() for x in pair)  # type: ignore[misc]
        for pair in prefix
    ]


def last_logits(model: Any, tokens: Tokens, n: int) -> Float[Tensor, "batch n vocab"]:
    """Logits at the last ``n`` positions of a batch, under the active interventions."""
    shared = shared_length(model, tokens)
    prefix = beginning(model, tokens, shared)
    if prefix is None:
        return model.logits(tokens, n)
    before = tokens.mask[:, :shared]
    rest = replace(tokens, ids=tokens.ids[:, shared:], mask=tokens.mask[:, shared:])
    return model.logits(rest, n, prefix=shifted(prefix, tokens.mask), prefix_mask=before)
