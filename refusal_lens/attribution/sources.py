"""Which tokens a head's contribution comes from, and how the direction moves across tokens and layers."""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from ..data.prompts import PromptsLike, as_prompts
from ..errors import PromptError
from ..hooks.attention_readers import Pattern, Sources
from ..hooks.base import Hooks, Model
from ..hooks.readers import Reader, resid_sites, vector_of
from ..models.chat import Tokens
from ..models.model import HookedChatModel
from ..records.direction import Direction, DirectionLike, as_direction
from ..records.labels import REGIONS, as_heads
from ..tensors import wide
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
) -> SourceContributions:
    """pattern[dest, src] · (v_src · W_O r̂) for every head and source token, at one destination.

    Handles grouped-query attention and post-norms; the sum over sources is ``heads``.

    Args:
        suffixes: one per prompt (with its leading space), or None.
        pos: the destination, counted from the end.
        check: verify that sources sum to z · W_O r̂.

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
    (found,) = model.run(tokens, read=Sources(direction, pos, check))
    bounds, words, asked = bounds_of(tokens), token_texts(model, tokens), texts(prompts, suffixes)
    return SourceContributions(found.values, found.pattern, bounds, words, asked, direction, pos)


class _Grid(Reader[dict[str, Tensor]]):
    """The residual stream, and what attention and MLP write to it, along r̂ at every token; padding is NaN."""

    axis: ClassVar[int] = -2
    fill: ClassVar[float | None] = float("nan")
    SITES: ClassVar[dict[str, str]] = {"projection": "resid_pre", "attn": "attn_out", "mlp": "mlp_out"}

    def __init__(self, direction: Direction):
        self.direction = direction

    def begin(self, model: Model, tokens: Any) -> None:
        super().begin(model, tokens)
        dtype = torch.promote_types(model.dtype, torch.float32)
        self.r = vector_of(model, self.direction).to(model.device, dtype)

    def hooks(self, model: Model, batch: Any) -> Hooks:
        self.found: dict[str, list[Tensor]] = {what: [] for what in self.SITES}

        def keep(what: str, x: Tensor, hook: Any) -> None:
            self.found[what].append((wide(x).to(self.r) @ self.r).masked_fill(~batch.mask, float("nan")))

        hooks = [
            (f"blocks.{layer}.hook_{site}", partial(keep, what))
            for layer in range(model.n_layers)
            for what, site in self.SITES.items()
        ]
        return [*hooks, (resid_sites(model.n_layers)[-1], partial(keep, "projection"))]

    def values(self, model: Model, batch: Any, logits: Tensor | None) -> dict[str, Tensor]:
        return {what: torch.stack(layers) for what, layers in self.found.items()}

    def result(self) -> dict[str, Tensor]:
        return self.rows


def propagation(
    model: HookedChatModel, prompts: PromptsLike, direction: DirectionLike, *, suffixes: Sequence[str] | None = None
) -> Propagation:
    """The projection on r̂ at every layer and token, and what attention and MLP wrote there along r̂.

    Raises:
        DirectionError: a direction of another model.

    Example:
        >>> travel = rl.attribution.propagation(model, data.harmful.test[:4], found)
        >>> travel.columns[:3]
        ('template_pre', 'instruction', '<|im_end|> (-5)')
    """
    prompts, direction = as_prompts(prompts), as_direction(direction)
    tokens = model.tokenize(prompts, suffixes)
    (grids,) = model.run(tokens, read=_Grid(direction))
    return Propagation(
        **grids,
        bounds=bounds_of(tokens),
        tokens=token_texts(model, tokens),
        prompts=texts(prompts, suffixes),
        direction=direction,
        post_labels=model.chat.post_labels(),
    )


def attention_patterns(model: HookedChatModel, prompt: PromptsLike, heads: Any, suffix: str = "") -> AttentionPatterns:
    """Attention patterns of a few heads on one prompt (all tokens to all tokens).

    Args:
        heads: (layer, head) pairs, or labels such as "L12H7".

    Raises:
        PromptError: several prompts.

    Example:
        >>> rl.attribution.attention_patterns(model, "How do I pick a lock?", [(1, 0), (2, 3)]).sizes
        {'head': 2, 'dest': 15, 'src': 15}
    """
    named, asked = as_heads(heads), as_prompts(prompt)
    if len(asked) != 1:
        raise PromptError(f"attention patterns are of one prompt, and {len(asked)} were given")
    tokens = model.tokenize(asked, suffix)
    (found,) = model.run(tokens, read=Pattern(named))
    return AttentionPatterns(found[0], named, token_texts(model, tokens)[0], texts(asked, suffix)[0])


def bounds_of(tokens: Tokens) -> Int[Tensor, "prompt region 2"]:
    """[start, stop) of each region on the padded axis."""
    bounds = torch.tensor([[getattr(span, name) for name in REGIONS] for span in tokens.spans])
    return bounds + (tokens.ids.shape[1] - tokens.lengths.cpu())[:, None, None]


def token_texts(model: HookedChatModel, tokens: Tokens) -> tuple[tuple[str, ...], ...]:
    """Text of each real token."""
    return tuple(
        tuple(model.tokenizer.decode([token]) for token in ids[mask].tolist())
        for ids, mask in zip(tokens.ids, tokens.mask, strict=True)
    )
