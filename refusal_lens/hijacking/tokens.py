"""Which suffix tokens carry the effect: leave one out, beside what the heads take from each."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..attribution.token_records import SourceContributions
from ..data.prompts import PromptsLike, as_prompts
from ..models.model import HookedChatModel
from ..records.labels import Head, visible
from ..refusal.records import RefusalTokens
from .observation_records import TokenEffects
from .screening import metric_of, without_token


def token_effects(
    model: HookedChatModel,
    prompts: PromptsLike,
    suffix: str,
    sources: SourceContributions,
    heads: Sequence[Head],
    refusal_tokens: RefusalTokens,
) -> TokenEffects | None:
    """Leave each suffix token out (as an id, so that nothing else changes) and read the refusal metric.

    Args:
        prompts: requests, at most as many as ``sources`` has (the first ones).
        sources: source contributions of the prompts with the suffix.
        heads: whose contributions are summed.

    Returns:
        None where the suffix's number of tokens differs between prompts.
    """
    prompts = as_prompts(prompts)
    encoded = [model.chat.encode(prompt, suffix) for prompt in prompts]
    counts = {e.spans.suffix[1] - e.spans.suffix[0] for e in encoded}
    if len(counts) > 1:
        return None
    n = counts.pop()
    removed = torch.empty(n, len(prompts), dtype=torch.float64)
    written = torch.empty(n, len(prompts), dtype=torch.float64)
    region = sources.regions.index("suffix")
    for i, e in enumerate(encoded):
        metric = metric_of(model, [e, *(without_token(e, k) for k in range(n))], refusal_tokens)
        removed[:, i] = metric[1:] - metric[0]
        start, stop = sources.bounds[i, region].tolist()
        written[:, i] = torch.stack([sources.values[a, b, i, start:stop] for a, b in heads]).sum(0)
    first = encoded[0].ids[slice(*encoded[0].spans.suffix)]
    return TokenEffects(tuple(visible(model.tokenizer.decode([t])) for t in first), removed, written)
