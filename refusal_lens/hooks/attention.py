"""Interventions on attention, as values: cut edges, put other patterns, move a head along r̂ only, add a placebo.

Positions are counted from the end, where prompts with and without a suffix correspond (post-instruction positions).
They act on the prompt only, not on tokens generated after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..records.labels import Head
from ..tensors import wide
from .base import Hooks, Model
from .readout import Readout


def by_layer(heads: tuple[Head, ...]) -> dict[int, list[int]]:
    """Heads of each layer."""
    found: dict[int, list[int]] = {}
    for layer, head in heads:
        found.setdefault(layer, []).append(head)
    return found


@dataclass(frozen=True)
class KnockOut:
    """Attention edges cut: from ``dest`` to ``src``, in some heads; what is left of each row is renormalised.

    Scores at these edges become the lowest finite number before the softmax (where the model has no hook point for
    scores, weights become 0 and the row is divided by what is left, which is the same).

    Attributes:
        heads: (layer, head) pairs.
        dest, src: masks of one batch.
    """

    heads: tuple[Head, ...]
    dest: Bool[Tensor, "batch pos"]
    src: Bool[Tensor, "batch pos"]

    def hooks(self, model: Model) -> Hooks:
        """One hook a layer that has such a head."""
        edges = self.dest[:, None, :, None] & self.src[:, None, None, :]
        found: Hooks = []
        for layer, heads in by_layer(self.heads).items():
            scores = f"blocks.{layer}.attn.hook_attn_scores"
            if model.backend.has_hook(scores):
                found.append((scores, _cut(edges, heads, scores=True)))
            else:
                found.append((f"blocks.{layer}.attn.hook_pattern", _cut(edges, heads, scores=False)))
        return found


def _cut(edges: Bool[Tensor, "batch one dest src"], heads: list[int], scores: bool) -> Callable:
    def cut(x: Tensor, hook: Any) -> Tensor:
        if x.shape[-1] != edges.shape[-1]:  # a decoding step: its own token is not a post-instruction position
            return x
        rows = edges[..., -x.shape[-2] :, :]  # all of them, or the last ones behind a prefix of keys and values
        chosen = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
        chosen[heads] = True
        gone = rows.to(x.device) & chosen[None, :, None, None]
        if scores:
            return x.masked_fill(gone, torch.finfo(x.dtype).min)
        left = x.masked_fill(gone, 0)
        whole = left.sum(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        return torch.where(gone.any(-1, keepdim=True), left / whole, x)

    return cut


@dataclass(frozen=True)
class PatchPattern:
    """Attention weights of some heads at the post-instruction positions, taken from another run.

    Attributes:
        heads: (layer, head) pairs.
        patterns: by layer, the other run's rows at the last positions.
        columns: which of the other run's sources stands at each of this run's; -1 for none (its weight is 0). Rows are
            renormalised, since the other run may have looked at tokens that this one lacks.
    """

    heads: tuple[Head, ...]
    patterns: dict[int, Float[Tensor, "batch head last other_src"]]
    columns: Int[Tensor, "batch src"]

    def hooks(self, model: Model) -> Hooks:
        """One hook a layer that has such a head."""
        return [
            (f"blocks.{layer}.attn.hook_pattern", self._edit(self.patterns[layer], heads))
            for layer, heads in by_layer(self.heads).items()
        ]

    def _edit(self, other: Tensor, heads: list[int]) -> Callable:
        index = self.columns.clamp_min(0)[:, None, None, :].expand(-1, len(heads), other.shape[2], -1)
        rows = torch.gather(other[:, heads], -1, index) * (self.columns >= 0)[:, None, None]
        whole = rows.sum(-1, keepdim=True)
        rows = rows / whole.clamp_min(torch.finfo(rows.dtype).tiny)

        def replace(p: Tensor, hook: Any) -> Tensor:
            if p.shape[-1] != rows.shape[-1] or p.shape[-2] < rows.shape[-2]:
                return p
            new = p.clone()
            new[:, heads, -rows.shape[2] :] = rows.to(new)
            return new

        return replace


@dataclass(frozen=True)
class PatchComponent:
    """Only the r̂ component of what some heads write, at the last positions, set to another run's.

    Attributes:
        heads: (layer, head) pairs.
        readout: r̂ as the heads see it.
        values: the other run's contributions along r̂.
    """

    heads: tuple[Head, ...]
    readout: Readout
    values: Float[Tensor, "layer head batch last"]

    def hooks(self, model: Model) -> Hooks:
        """Reads z (and a post-norm's scale), and moves hook_attn_out along r̂ by the difference."""
        found: Hooks = []
        for layer, heads in by_layer(self.heads).items():
            found += self._layer(model, layer, heads)
        return found

    def _layer(self, model: Model, layer: int, heads: list[int]) -> Hooks:
        seen: dict[str, Tensor] = {}
        wanted = self.values[layer, heads].sum(0)
        n_last, r, site = wanted.shape[-1], self.readout.vector, self.readout.scale_sites[layer]

        def read(z: Tensor, hook: Any) -> None:
            z = wide(z[:, -n_last:]).to(r).reshape(len(z), -1, model.n_heads, model.d_head)[:, :, heads]
            seen["now"] = torch.einsum("bqhd,hd->bq", z, self.readout.heads[layer][heads])

        def scale(s: Tensor, hook: Any) -> None:
            seen["scale"] = wide(s[:, -n_last:, 0]).to(r)

        def move(x: Tensor, hook: Any) -> Tensor:
            now = seen.pop("now") / seen.pop("scale", torch.ones((), dtype=r.dtype, device=r.device))
            if now.shape != wanted.shape:
                return x
            new = x.clone()
            new[:, -n_last:] += ((wanted.to(now) - now)[..., None] * r).to(x.dtype)
            return new

        base = f"blocks.{layer}"
        extra = [] if site is None else [(site, scale)]
        return [(f"{base}.attn.hook_z", read), *extra, (f"{base}.hook_attn_out", move)]


@dataclass(frozen=True)
class SetComponent:
    """The residual stream's component along r̂ at the last positions set to another run's, at every layer's resid_pre.

    Attributes:
        vector: r̂, unit length.
        values: the other run's components.
        steps: filled with the moves made, by layer: the placebo makes the same ones along another vector.
    """

    vector: Float[Tensor, "d_model"]
    values: Float[Tensor, "layer batch last"]
    steps: dict[int, Tensor]

    def hooks(self, model: Model) -> Hooks:
        """One hook at each resid_pre but the first, where post-instruction positions are the same in both runs."""
        return [(f"blocks.{layer}.hook_resid_pre", self._edit(layer)) for layer in range(1, model.n_layers)]

    def _edit(self, layer: int) -> Callable:
        wanted = self.values[layer]

        def move(x: Tensor, hook: Any) -> Tensor:
            if x.shape[1] < wanted.shape[1]:
                return x
            now = wide(x[:, -wanted.shape[1] :]).to(self.vector) @ self.vector
            self.steps[layer] = wanted.to(now) - now
            new = x.clone()
            new[:, -wanted.shape[1] :] += (self.steps[layer][..., None] * self.vector).to(x.dtype)
            return new

        return move


@dataclass(frozen=True)
class Push:
    """A given change added at the last positions of some hook points: the norm-matched placebo.

    Attributes:
        changes: what to add, by hook name.
    """

    changes: dict[str, Float[Tensor, "batch last d_model"]]

    def hooks(self, model: Model) -> Hooks:
        """One hook a hook point."""
        return [(name, _push(change)) for name, change in self.changes.items()]


def _push(change: Tensor) -> Callable:
    def push(x: Tensor, hook: Any) -> Tensor:
        if x.shape[1] < change.shape[1]:
            return x
        new = x.clone()
        new[:, -change.shape[1] :] += change.to(x)
        return new

    return push


@dataclass(frozen=True)
class ReplaceHeads:
    """z of some heads replaced at the last positions, as an intervention for ``model.hooks``.

    Attributes:
        heads: (layer, head) pairs.
        values: what to put there; one row for all prompts, or a row a prompt of the batch.
    """

    heads: tuple[Head, ...]
    values: Float[Tensor, "layer rows last head d_head"]

    def hooks(self, model: Model) -> list[tuple[str, Callable]]:
        """One hook a layer that has such a head."""
        by_layer: dict[int, list[int]] = {}
        for layer, head in self.heads:
            by_layer.setdefault(layer, []).append(head)
        return [(f"blocks.{layer}.attn.hook_z", self._edit(layer, heads)) for layer, heads in by_layer.items()]

    def _edit(self, layer: int, heads: list[int]) -> Callable:
        values = self.values[layer][:, :, heads]

        def replace(z: Tensor, hook: Any) -> Tensor:
            new = z.reshape(*z.shape[:2], -1, values.shape[-1]).clone()
            new[:, -values.shape[1] :, heads] = values.to(new)
            return new.reshape(z.shape)

        return replace
