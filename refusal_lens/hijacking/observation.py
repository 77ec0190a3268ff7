"""One condition: projections, heads, attention by region, dominance, metric and replies."""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.components import texts
from ..attribution.sources import bounds_of
from ..attribution.token_records import SourceContributions
from ..data.prompts import PromptsLike, as_prompts, as_suffixes
from ..errors import ModelError
from ..hooks.attention_readers import AttentionByRegion, Components, RegionShare, Sources
from ..hooks.readers import Residual
from ..models.model import HookedChatModel
from ..models.texts import token_texts
from ..records.direction import DirectionLike, as_direction
from ..records.labels import REGIONS, Head, as_heads
from ..refusal.metric import RefusalMetric
from ..refusal.phrases import is_refusal
from ..refusal.replies import replies
from ..refusal.tokens import TokensLike, as_refusal_tokens
from .observation_records import Observation, Split


def observe(
    model: HookedChatModel,
    condition: str,
    prompts: PromptsLike,
    direction: DirectionLike,
    top_heads: Sequence[Head | str],
    refusal_tokens: TokensLike,
    suffixes: str | Sequence[str] | None = None,
    max_new_tokens: int = 0,
) -> tuple[Observation, SourceContributions]:
    """Read one condition.

    Args:
        condition: its label.
        suffixes: one per prompt, one ``str`` for all, or None.
        max_new_tokens: length of the replies; 0 for none (then refusals are judged by the metric).

    Returns:
        The observation, and the source contributions that splits and token forensics need.

    Example:
        >>> prompts, tokens = data.harmful.test[:4], found.refusal_tokens
        >>> plain, _ = rl.hijacking.observe(model, "plain", prompts, found, [(2, 0)], tokens)
        >>> plain.attention_to("instruction").shape, plain.refusal_rate.rate
        (torch.Size([1, 4]), 1.0)
    """
    prompts, direction, top_heads = as_prompts(prompts), as_direction(direction), as_heads(top_heads)
    refusal_tokens = as_refusal_tokens(model, refusal_tokens)
    given = as_suffixes(suffixes, len(prompts))
    tokens = model.tokenize(prompts, given)
    by_source, parts = Sources(direction), Components(direction)
    at_end, inside = Residual(direction), Residual(direction, "instruction")
    attention, share, metric = AttentionByRegion(), RegionShare(top_heads), RefusalMetric(refusal_tokens)
    rows = model.run(tokens, read=[by_source, parts, at_end, inside, attention, share, metric])
    sources = SourceContributions(
        *rows[by_source], bounds_of(tokens), token_texts(model, tokens), texts(prompts, given), direction, -1
    )
    every, written = rows[attention], rows[parts]._asdict()
    responses = replies(model, tokens, max_new_tokens) if max_new_tokens else []
    observation = Observation(
        condition=condition,
        prompts=tuple(prompts),
        suffixes=tuple(given),
        projection=written.pop("resid"),
        cosine=rows[at_end].cosine,
        instruction_projection=rows[inside].projection,
        instruction_cosine=rows[inside].cosine,
        instruction_max=rows[inside].highest,
        **written,  # embed, heads, attn_bias, mlp
        by_region=sources.by_region().sum(1).transpose(1, 2),
        attention=torch.stack([every[layer, head] for layer, head in top_heads]).permute(0, 1, 3, 2),
        attention_mean=every.mean(-1),
        dominance=rows[share].layers,
        top_dominance=rows[share].top,
        metric=rows[metric],
        top_heads=top_heads,
        responses=tuple(responses),
        refused=tuple(is_refusal(reply) for reply in responses),
        threshold=refusal_tokens.threshold,
    )
    return observation, sources


def split_drop(before: SourceContributions, after: SourceContributions) -> Split:
    """Split each head's change between two conditions of the same instructions (see ``Split``).

    Suffix tokens are matched from the first on; where one side has none or fewer, they are new tokens.
    """
    layers, heads, n, _ = before.values.shape
    new = torch.promote_types(before.values.dtype, torch.float32)
    least = 1e-300 if new == torch.float64 else 1e-38
    moved, changed = torch.zeros(2, layers, heads, len(REGIONS), n, dtype=new)
    for i, (k, name) in itertools.product(range(n), enumerate(REGIONS)):
        (a, b), (c, d) = (side.bounds[i, k].tolist() for side in (before, after))
        if name != "suffix" and b - a != d - c:
            raise ModelError(
                f"prompt {i}: {name} has {b - a} tokens in one condition and {d - c} in the other, so they cannot be "
                "compared token by token"
            )
        width = max(b - a, d - c)
        w0, s0 = (_padded(x[:, :, i, a:b], width) for x in (before.pattern, before.values))
        w1, s1 = (_padded(x[:, :, i, c:d], width) for x in (after.pattern, after.values))
        # value = share / weight; a token without weight on one side has, for the split, the other side's value.
        v0, v1 = (torch.where(w > 0, s / w.clamp_min(least), 0) for w, s in ((w0, s0), (w1, s1)))
        v0, v1 = torch.where(w0 > 0, v0, v1), torch.where(w1 > 0, v1, v0)
        moved[:, :, k, i] = ((w0 - w1) * (v0 + v1) / 2).sum(-1)
        changed[:, :, k, i] = ((w0 + w1) * (v0 - v1) / 2).sum(-1)
    return Split(moved.sum(2), changed.sum(2), moved + changed)


def _padded(x: Float[Tensor, "layer head source"], width: int) -> Float[Tensor, "layer head width"]:
    return torch.nn.functional.pad(x, (0, width - x.shape[-1]))
