"""Which tokens a head's contribution comes from, and how the direction moves across tokens and layers."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..data.prompts import PromptsLike, as_prompts
from ..engines.base import Engine
from ..errors import PromptError
from ..hooks.attention import every_head
from ..hooks.attention_readers import Sources
from ..hooks.pattern_readers import Pattern, WrittenPattern
from ..hooks.readers import EveryToken
from ..models.chat import Tokens
from ..models.model import HookedChatModel
from ..models.texts import token_texts
from ..records.direction import DirectionLike, as_direction
from ..records.labels import REGIONS, Head, as_heads, head_label, index_of
from .components import texts
from .token_records import AttentionPatterns, Propagation, SourceContributions


def source_contributions(
    model: HookedChatModel,
    prompts: PromptsLike,
    direction: DirectionLike,
    *,
    suffixes: Sequence[str] | None = None,
    pos: int = -1,
    check: bool = True,
    engine: Engine | None = None,
) -> SourceContributions:
    """pattern[dest, src] · (v_src · W_O r̂) for every head and source token, at one destination.

    Handles grouped-query attention and post-norms; the sum over sources is ``heads``.

    Args:
        suffixes: one per prompt (with its leading space), or None.
        pos: the destination, counted from the end.
        check: verify that sources sum to z · W_O r̂.
        engine: spreads blocks of 64 prompts over its workers; this process if None.

    Raises:
        DirectionError: a direction of another model.
        ModelError: attention patterns are not computed, or sources do not sum to the head.

    Example:
        >>> sources = rl.attribution.source_contributions(model, data.harmful.test[:4], found)
        >>> sources.to_frame([(2, 0)]).set_index("region").along_direction.idxmax()
        'template_post'
    """
    prompts, direction = as_prompts(prompts), as_direction(direction)
    tokens = model.tokenize(prompts, suffixes)
    (found,) = model.run(prompts, suffixes, read=Sources(direction, pos, check), engine=engine)
    bounds, words, asked = bounds_of(tokens), token_texts(model, tokens), texts(prompts, suffixes)
    return SourceContributions(found.values, found.pattern, bounds, words, asked, direction, pos)


def propagation(
    model: HookedChatModel,
    prompts: PromptsLike,
    direction: DirectionLike,
    *,
    suffixes: Sequence[str] | None = None,
    engine: Engine | None = None,
) -> Propagation:
    """The projection on r̂ at every layer and token, and what attention and MLP wrote there along r̂; ``engine`` as in
    ``source_contributions``.

    Raises:
        DirectionError: a direction of another model.

    Example:
        >>> travel = rl.attribution.propagation(model, data.harmful.test[:4], found)
        >>> travel.columns[:3]
        ('template_pre', 'instruction', '<|im_end|> (-5)')
    """
    prompts, direction = as_prompts(prompts), as_direction(direction)
    tokens = model.tokenize(prompts, suffixes)
    (found,) = model.run(prompts, suffixes, read=EveryToken(direction, writes=True), engine=engine)
    return Propagation(
        **{name: found[name] for name in ("projection", "attn", "mlp")},
        bounds=bounds_of(tokens),
        tokens=token_texts(model, tokens),
        prompts=texts(prompts, suffixes),
        direction=direction,
        post_labels=model.chat.post_labels(),
    )


def attention_patterns(
    model: HookedChatModel, prompt: PromptsLike, heads: Any, suffix: str = "", direction: DirectionLike | None = None
) -> AttentionPatterns:
    """Attention patterns of a few heads on one prompt (all tokens to all tokens).

    Args:
        heads: (layer, head) pairs, or labels such as "L12H7".
        direction: if given, what passes through each weight is read too: its length, and its projection on r̂.

    Raises:
        PromptError: several prompts.
        LabelError: a head that the model does not have.
        DirectionError: a direction of another model.

    Example:
        >>> rl.attribution.attention_patterns(model, "How do I pick a lock?", [(1, 0), (2, 3)]).sizes
        {'head': 2, 'dest': 15, 'src': 15}
        >>> pattern = rl.attribution.attention_patterns(model, "How do I pick a lock?", "L1H0", direction=found)
        >>> pattern.along.sum(-1).shape  # what the head writes along r̂ at every token
        torch.Size([1, 15])
    """
    named, asked = known_heads(model, heads), as_prompts(prompt)
    if len(asked) != 1:
        raise PromptError(f"attention patterns are of one prompt, and {len(asked)} were given")
    tokens = model.tokenize(asked, suffix)
    about = named, token_texts(model, tokens)[0], texts(asked, suffix)[0]
    if direction is None:
        (weights,) = model.run(tokens, read=Pattern(named))
        return AttentionPatterns(weights[0], *about)
    (parts,) = model.run(tokens, read=WrittenPattern(named, as_direction(direction)))
    return AttentionPatterns(parts[0].weight, *about, parts[0].length, parts[0].along)


def known_heads(model: HookedChatModel, heads: Any) -> tuple[Head, ...]:
    """(layer, head) pairs, each a head of the model; a ``LabelError`` for one that it does not have."""
    named, every = as_heads(heads), [head_label(*head) for head in every_head(model)]
    for head in named:
        index_of(every, head_label(*head), "head", model.name)
    return named


def bounds_of(tokens: Tokens) -> Int[Tensor, "prompt region 2"]:
    """[start, stop) of each region on the padded axis."""
    bounds = torch.tensor([[getattr(span, name) for name in REGIONS] for span in tokens.spans])
    return bounds + (tokens.ids.shape[1] - tokens.lengths.cpu())[:, None, None]
