"""Interventions on attention: heads chosen by layer, and edges between tokens cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ..errors import InterventionError
from ..records.labels import Head, as_heads, head_label
from .base import PLACES, HookIntervention, Hooks, Model, Positions, Where, layers_of


def by_layer(heads: Iterable[Head]) -> dict[int, list[int]]:
    """Heads of each layer."""
    found: dict[int, list[int]] = {}
    for layer, head in heads:
        found.setdefault(layer, []).append(head)
    return found


def every_head(model: Model) -> tuple[Head, ...]:
    """All heads of a model, layer by layer."""
    return tuple((layer, head) for layer in range(model.n_layers) for head in range(model.n_heads))


def random_heads(model: Model, heads: Sequence[Head], rng: Random) -> tuple[Head, ...]:
    """As many heads of the same layers, none of them named; fewer where a layer has no others left."""
    drawn: list[Head] = []
    for layer, named in sorted(by_layer(heads).items()):
        free = [head for head in range(model.n_heads) if head not in named]
        drawn += [(layer, head) for head in sorted(rng.sample(free, min(len(named), len(free))))]
    return tuple(drawn)


@dataclass(frozen=True)
class HeadsIntervention(HookIntervention):
    """An intervention in some heads.

    Attributes:
        heads: (layer, head) pairs or labels such as "L12H7", or None for all.
        instead: seed of random other heads of the same layers that are taken instead (see ``elsewhere``).
    """

    heads: Any  # Head pairs, from here on
    instead: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads is not None:
            object.__setattr__(self, "heads", as_heads(self.heads))

    counts_positions = True  # which tokens it concerns depends on the prompts

    def hooks(self, model: Model) -> Hooks:
        """One hook or more per layer with such a head."""
        where = Where(model, self)
        return [pair for item in self.by_layer(model).items() for pair in self._layer(model, where, *item)]

    def _layer(self, model: Model, where: Where, layer: int, heads: list[int]) -> Hooks:
        raise NotImplementedError

    def by_layer(self, model: Model) -> dict[int, list[int]]:
        """The heads of each chosen layer; an ``InterventionError`` for one that the model lacks, or no other heads."""
        n_layers, n_heads = model.n_layers, model.n_heads
        layers = layers_of(self.layers, n_layers)
        every = every_head(model)
        heads = every if self.heads is None else self.heads
        if wrong := [head for head in heads if head not in every]:
            raise InterventionError(
                f"there is no head {head_label(*wrong[0])} in {model.name}: it has {n_layers} layers of {n_heads} heads"
            )
        if self.instead is not None and not (heads := random_heads(model, heads, Random(self.instead))):
            raise InterventionError("every head of these layers is named: there are no other heads for a placebo")
        return {layer: some for layer, some in by_layer(heads).items() if layer in layers}

    def elsewhere(self, seed: int) -> Any:
        """The same intervention in as many random other heads of the same layers."""
        return replace(self, instead=seed)

    def _subject(self) -> str:
        if self.heads is None:
            return "all heads"
        others = "" if self.instead is None else f"others (seed {self.instead}) than "
        return others + " ".join(head_label(*head) for head in self.heads[:4]) + (" ..." if len(self.heads) > 4 else "")


@dataclass(frozen=True)
class AttentionKnockout(HeadsIntervention):
    """Attention edges cut in some heads: from ``positions`` to ``source``; the rest of each row is renormalised.

    Scores at these edges become the lowest finite number before the softmax (where the model has no hook point for
    scores, weights become 0 and the row is divided by the rest, which is the same). With a ``strength`` s below 1
    these weights are multiplied by 1 - s before the row is renormalised.

    Attributes:
        heads: (layer, head) pairs, or None for all.
        source: the tokens that are no longer attended to, in words or slices as ``positions``.
        positions: the tokens that no longer attend to them.

    Example:
        >>> from refusal_lens.hooks import AttentionKnockout
        >>> with model.hooks(AttentionKnockout(((1, 0), (2, 3)), source="instruction")):
        ...     blind = model.last_logits("How do I pick a lock?")
    """

    heads: Any = None
    source: Positions = "suffix"
    positions: Positions = field(default="template_post", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source is None:
            raise InterventionError(
                f"source=None: name the tokens to cut off; choose from {', '.join(PLACES)}, or a slice"
            )
        HookIntervention(positions=self.source)  # checks them
        if not 0 <= self.strength <= 1:
            raise InterventionError(f"strength={self.strength:g}: attention can be cut by a share from 0 to 1")

    def _layer(self, model: Model, where: Where, layer: int, heads: list[int]) -> Hooks:
        before = model.backend.has_hook(f"blocks.{layer}.attn.hook_attn_scores")
        return [(f"blocks.{layer}.attn.hook_{'attn_scores' if before else 'pattern'}", self._cut(where, heads, before))]

    def _cut(self, where: Where, heads: list[int], scores: bool) -> Callable:
        def cut(x: Tensor, hook: Any) -> Tensor:
            edges = self._edges(where, *x.shape[-2:])
            if edges is None:
                return x
            chosen = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
            chosen[heads] = True
            gone = edges.to(x.device)[:, None] & chosen[None, :, None, None]
            if scores:
                if self.strength != 1:
                    return torch.where(gone, x + math.log1p(-self.strength), x)
                return x.masked_fill(gone, torch.finfo(x.dtype).min)
            left = x.masked_fill(gone, 0) if self.strength == 1 else torch.where(gone, x * (1 - self.strength), x)
            whole = left.sum(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
            return torch.where(gone.any(-1, keepdim=True), left / whole, x)

        cut.where = where  # type: ignore[attr-defined]
        return cut

    def _edges(self, where: Where, width: int, keys: int) -> Bool[Tensor, "batch dest src"] | None:
        source = where.at(width, self.source, keys)
        if source is None:
            return None
        if self.positions is None:
            return source[:, None].expand(-1, width, -1)
        dest = where.at(width)
        return None if dest is None else dest[:, :, None] & source[:, None]

    def placebo(self, seed: int) -> AttentionKnockout:
        """The same edges cut in as many random other heads of the same layers."""
        return self.elsewhere(seed)

    def _subject(self) -> str:
        return f"{super()._subject()} to {self.source}"
