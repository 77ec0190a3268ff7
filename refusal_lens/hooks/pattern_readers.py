"""Readers of whole attention patterns: weights, and what each token writes into each other token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..records.labels import Head
from ..tensors import wide
from .attention_readers import by_value_head
from .base import Hooks, Model
from .readers import Reader, vector_of
from .readout import Readout


@dataclass(eq=False)
class Pattern(Reader[list[Tensor]]):
    """Attention patterns of a few heads, all tokens to all tokens, one [head, dest, src] per prompt.

    Attributes:
        heads: (layer, head) pairs.
    """

    heads: Sequence[Head]

    def hooks(self, model: Model, batch: Any) -> Hooks:
        self.kept: dict[Head, Tensor] = {}

        def keep(layer: int, p: Tensor, hook: Any) -> None:
            self.kept |= {(layer, head): wide(p[:, head]) for other, head in self.heads if other == layer}

        return [(f"blocks.{layer}.attn.hook_pattern", partial(keep, layer)) for layer in self.layers]

    @property
    def layers(self) -> list[int]:
        """Layers of the heads, in rising order."""
        return sorted({layer for layer, _ in self.heads})

    def values(self, model: Model, batch: Any, logits: Tensor | None) -> dict[str, Tensor]:
        return self._by_prompt(batch, torch.stack([self.kept[head].cpu() for head in self.heads], 1))

    @staticmethod
    def _by_prompt(batch: Any, whole: Float[Tensor, "batch *of dest src"], name: str = "") -> dict[str, Tensor]:
        lengths = batch.lengths.tolist()
        return {f"{name}{i}": x[..., -n:, -n:].clone() for i, (x, n) in enumerate(zip(whole, lengths, strict=True))}

    def put(self, indices: Sequence[int], values: dict[str, Tensor]) -> None:
        for name, x in values.items():
            self.rows[str(indices[int(name)])] = x

    def result(self) -> list[Tensor]:
        return [self.rows[str(i)] for i in range(self.n)]


class PatternParts(NamedTuple):
    """Attention weights of one prompt, the length of what each source writes at each destination, and its projection
    on a vector."""

    weight: Float[Tensor, "head dest src"]
    length: Float[Tensor, "head dest src"]
    along: Float[Tensor, "head dest src"]


@dataclass(eq=False)
class WrittenPattern(Pattern):
    """Attention patterns with what passes through them: weight, weight · |v W_O|, and weight · (v W_O · r̂).

    Post-norms are counted with their scale at the destination. A row of the last one sums to what the head writes along
    the vector at that token (biases after the sum over heads not counted).

    Attributes:
        heads: (layer, head) pairs.
        vector: a direction, or a result that has one (its unit vector is used), or a vector.

    Example:
        >>> (found,) = model.run("How do I pick a lock?", read=rl.hooks.WrittenPattern([(1, 0)], found))
        >>> found[0].along.shape, float(found[0].weight.sum(-1).max().round(decimals=4))
        (torch.Size([1, 15, 15]), 1.0)
    """

    vector: Any

    def begin(self, model: Model, tokens: Any) -> None:
        super().begin(model, tokens)
        self.readout = Readout.of(model, vector_of(model, self.vector))

    def hooks(self, model: Model, batch: Any) -> Hooks:
        self.sizes: dict[Head, tuple[Tensor, Tensor]] = {}
        self.scales: dict[int, Tensor] = {}
        found = super().hooks(model, batch)
        for layer in self.layers:
            # During a pass the backend may have put modules in the places of components.
            how = model.backend.output_weight(layer).detach(), model.backend.post_norm(layer, "attn")
            found.append((f"blocks.{layer}.attn.hook_v", partial(self._on_values, model, layer, *how)))
            if (site := self.readout.scale_sites[layer]) is not None:
                found.append((site, partial(self._on_scale, layer)))
        return found

    def _on_values(self, model: Model, layer: int, weights: Tensor, norm: Any, v: Tensor, hook: Any) -> None:
        v, r = by_value_head(v, hook, model.d_head), self.readout.vector
        weights = weights.to(r)
        shared = len(weights) // v.shape[2]
        for head in (head for other, head in self.heads if other == layer):
            out, mine = weights[head], wide(v[:, :, head // shared]).to(r)
            if norm is None:
                out = out * model.backend.write_scale
            else:
                out = out - out.mean(-1, keepdim=True) if norm.centred else out
                out = out if norm.weight is None else out * norm.weight.to(out)
            self.sizes[layer, head] = (mine @ out).norm(dim=-1), mine @ self.readout.heads[layer, head]

    def _on_scale(self, layer: int, s: Tensor, hook: Any) -> None:
        self.scales[layer] = wide(s[..., 0])

    def values(self, model: Model, batch: Any, logits: Tensor | None) -> dict[str, Tensor]:
        grids = []
        for layer, head in self.heads:
            weight = self.kept[layer, head].to(self.readout.vector)
            written = [weight * size[:, None] for size in self.sizes[layer, head]]
            if layer in self.scales:
                written = [x / self.scales[layer].to(x)[..., None] for x in written]
            grids.append(torch.stack([weight, *written], 1).cpu())
        return self._by_prompt(batch, torch.stack(grids, 2))

    def result(self) -> list[PatternParts]:  # type: ignore[override]  # of one prompt three, not one
        return [PatternParts(*self.rows[str(i)]) for i in range(self.n)]
