"""Attribution patching (a gradient estimate of patching every head) compared with patching heads one by one."""

from collections.abc import Sequence

import torch
from scipy import stats as scipy_stats
from torch import Tensor

from ..data.prompts import PromptsLike, as_prompts
from ..errors import PromptError
from ..hooks.attention import every_head
from ..hooks.interchange import InterchangeHeads
from ..hooks.readers import Cache
from ..models.chat import Tokens
from ..models.model import HookedChatModel
from ..records.labels import Head
from ..refusal.metric import RefusalMetric
from ..refusal.records import RefusalTokens
from ..stats import correlation
from ..tensors import refusal_log_odds
from .causal import wide_dtype
from .causal_records import PatchingComparison


def equal_length_pairs(
    model: HookedChatModel, clean: PromptsLike, corrupt: PromptsLike, limit: int = 16
) -> tuple[list[str], list[str]]:
    """Pairs of prompts with the same number of tokens, each prompt used once, in the order given.

    Raises:
        PromptError: no two are of equal length.
    """
    waiting: dict[int, list[str]] = {}
    for prompt in as_prompts(corrupt):
        waiting.setdefault(len(model.chat.encode(prompt).ids), []).append(prompt)
    pairs: list[tuple[str, str]] = []
    for prompt in as_prompts(clean):
        same = waiting.get(len(model.chat.encode(prompt).ids))
        if same and len(pairs) < limit:
            pairs.append((prompt, same.pop(0)))
    if not pairs:
        raise PromptError("no harmful and harmless prompt have the same number of tokens; give more prompts")
    return [a for a, _ in pairs], [b for _, b in pairs]


def attribution_patching(
    model: HookedChatModel,
    clean: PromptsLike,
    corrupt: PromptsLike,
    refusal_tokens: RefusalTokens,
    *,
    heads: Sequence[Head] | None = None,
) -> PatchingComparison:
    """Patch every head from ``clean`` (harmful) into ``corrupt`` (harmless): by gradient, and exactly.

    Args:
        clean, corrupt: pairs of equal token count (see ``equal_length_pairs``).
        heads: heads to patch exactly; all if None (one run per head and pair).

    Raises:
        PromptError: a pair of unequal lengths.
        ModelError: a model without TransformerLens's tool (HookedTransformer).
    """
    clean, corrupt = as_prompts(clean), as_prompts(corrupt)
    sides = model.tokenize(clean), model.tokenize(corrupt)
    if len(clean) != len(corrupt) or not torch.equal(sides[0].lengths, sides[1].lengths):
        raise PromptError("clean and corrupt prompts must have equal token counts; use equal_length_pairs")
    chosen = every_head(model) if heads is None else tuple(heads)
    estimated = _estimate(model, sides[0], sides[1], refusal_tokens)
    exact = torch.full_like(estimated, float("nan"))
    ends = torch.zeros(2, dtype=torch.float64)
    cache, metric = Cache([f"blocks.{layer}.attn.hook_z" for layer, _ in chosen]), RefusalMetric(refusal_tokens)
    sums: dict[Head, float] = dict.fromkeys(chosen, 0.0)
    for rows in _groups(sides[1]):
        good, bad = (side.take(rows) for side in sides)
        cached, on_clean = model.run(good, read=[cache, metric])
        (on_corrupt,) = model.run(bad, read=metric)
        ends += torch.stack([on_clean, on_corrupt]).sum(-1)
        for layer, head in chosen:
            z = cached[f"blocks.{layer}.attn.hook_z"]
            patch = InterchangeHeads(((layer, head),), {layer: z.reshape(*z.shape[:2], model.n_heads, model.d_head)})
            (patched,) = model.run(bad, read=metric, under=patch)
            sums[layer, head] += float((patched - on_corrupt).sum())
    for (layer, head), total in sums.items():
        exact[layer, head] = total / len(clean)
    x, y = ([float(grid[head]) for head in chosen] for grid in (estimated, exact))
    return PatchingComparison(
        estimated,
        exact,
        tuple(clean),
        tuple(corrupt),
        float(ends[0] / len(clean)),
        float(ends[1] / len(clean)),
        spearman=correlation(x, y)[0],
        pearson=correlation(x, y, of=scipy_stats.pearsonr)[0],
    )


def _groups(tokens: Tokens) -> list[list[int]]:
    """Rows of equal length together: no padding, so z of both sides lines up."""
    groups: dict[int, list[int]] = {}
    for row, length in enumerate(tokens.lengths.tolist()):
        groups.setdefault(length, []).append(row)
    return list(groups.values())


def _estimate(model: HookedChatModel, clean: Tokens, corrupt: Tokens, refusal_tokens: RefusalTokens) -> Tensor:
    """Mean over pairs of TransformerLens's node scores, summed over tokens."""

    def metric(logits: Tensor) -> Tensor:
        return refusal_log_odds(logits[0, -1], refusal_tokens.ids)

    total = torch.zeros(model.n_layers, model.n_heads, dtype=wide_dtype(model))
    for rows in _groups(corrupt):
        good, bad = clean.take(rows), corrupt.take(rows)
        scores = model.backend.attribution_patch(good.ids, bad.ids, metric)
        for (layer, head), score in scores.items():
            total[layer, head] += len(rows) * score
    return total / len(corrupt)
