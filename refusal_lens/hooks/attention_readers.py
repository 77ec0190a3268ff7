"""Readers of what attention and MLPs write along a vector, and of the tokens that it comes from."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ModelError
from ..records.labels import REGIONS, Head
from ..tensors import wide
from .base import Hooks, Model
from .readers import Kept, Reader, at, check_position, resid_sites, vector_of
from .readout import Readout

# Parts against hook_attn_out, relative to its length: the model rounds each head's sum to its dtype, and norms
# run in float32 in every model.
PARTS_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
# Two roundings to the model's dtype, of the pattern and of z, with room for the sum between them.
SOURCES_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 5e-3}


def heads_apart(x: Tensor, hook: Any, d_head: int) -> Float[Tensor, "batch pos head d"]:
    """Queries, keys or values with their heads apart; grouped-query attention has fewer key and value heads."""
    if x.ndim == 4 and getattr(hook, "pos_dim", None) == 2:  # latent attention: [batch, head, pos, d]
        x = x.transpose(1, 2)
    return x if x.ndim == 4 else x.unflatten(-1, (-1, d_head))


def by_group(x: Tensor, axis: int, value_heads: int) -> Tensor:
    """The query heads on ``axis`` as [value head, query heads that share it], so that no copy of v is made."""
    return x.unflatten(axis, (value_heads, -1))


class Parts(NamedTuple):
    """The residual stream along a vector at one position, by component; fields as in ``ComponentContributions``."""

    embed: Float[Tensor, "prompt"]
    heads: Float[Tensor, "layer head prompt"]
    attn_bias: Float[Tensor, "layer prompt"]
    mlp: Float[Tensor, "layer prompt"]
    resid: Float[Tensor, "site prompt"]


@dataclass(eq=False)
class _Writes(Kept):
    """Every head's and attention bias's share of hook_attn_out along a vector, checked against it.

    Attributes:
        vector: a direction, or a result that has one (its unit vector is used), or a vector.
        pos: position, counted from the end.
        check: verify on every prompt that heads and bias sum to hook_attn_out.
    """

    vector: Any
    pos: int = -1
    check: bool = True

    def begin(self, model: Model, tokens: Any) -> None:
        super().begin(model, tokens)
        check_position(tokens, self.pos)
        self.where, self.readout = at(self.pos), Readout.of(model, vector_of(model, self.vector))
        layers = range(model.n_layers)
        self.z = [f"blocks.{i}.attn.hook_z" for i in layers]
        self.attn = [f"blocks.{i}.hook_attn_out" for i in layers] if self.check else []
        self.names = [*self.z, *self.attn, *(site for site in self.readout.scale_sites if site)]

    def along(self, sites: Sequence[str]) -> Float[Tensor, "site prompt"]:
        """Projections of what was kept."""
        r = self.readout.vector
        return torch.stack([wide(self.kept[name][:, 0]).to(r) @ r for name in sites])

    def values(self, model: Model, batch: Any, logits: Tensor | None) -> dict[str, Tensor]:
        r, heads, biases = self.readout.vector, [], []
        for layer, name in enumerate(self.z):
            z = wide(self.kept[name][:, 0]).to(r)
            z = z.reshape(len(z), -1, model.d_head)  # some attention bridges give heads side by side
            share = torch.einsum("bhd,hd->hb", z, self.readout.heads[layer])
            inside = self.readout.bias_inside[layer].expand(len(z))
            if (site := self.readout.scale_sites[layer]) is not None:
                scale = wide(self.kept[site][:, 0, 0]).to(r)
                share, inside = share / scale, inside / scale
            heads.append(share)
            biases.append(inside + self.readout.bias_outside[layer])
        rows = {"heads": torch.stack(heads), "attn_bias": torch.stack(biases)}
        if self.check:
            attn = self.along(self.attn)
            lengths = torch.stack([wide(self.kept[name][:, 0]).norm(dim=-1) for name in self.attn]).to(r)
            self._check_heads(model, rows, attn, lengths * r.norm())
        return rows

    @staticmethod
    def _check_heads(model: Model, rows: dict[str, Tensor], attn: Tensor, size: Tensor) -> None:
        """Heads and bias must sum to hook_attn_out · r̂, relative to the lengths of both."""
        gap = (rows["heads"].sum(1) + rows["attn_bias"] - attn).abs() / size.clamp_min(1e-30)
        layer = int(gap.amax(-1).argmax())
        tolerance = PARTS_TOLERANCE.get(model.dtype, 4e-2)
        if not float(gap.max()) <= tolerance:
            raise ModelError(
                f"{model.name}, layer {layer}: the heads and the bias miss hook_attn_out by {float(gap.max()):.2g} of "
                f"its length (limit {tolerance:g}); its attention output is scaled, gated or edited in a way not known "
                "here. Under an intervention that edits hook_attn_out pass check=False; else use whole components only"
            )


@dataclass(eq=False)
class Heads(_Writes):
    """What every head writes along a vector at one position, through post-norms (paper section 5.1)."""

    def result(self) -> Float[Tensor, "layer head prompt"]:
        return self.rows["heads"]


@dataclass(eq=False)
class Components(_Writes):
    """What the embedding, every head, attention bias and MLP write along a vector at one position."""

    def begin(self, model: Model, tokens: Any) -> None:
        super().begin(model, tokens)
        self.resid = resid_sites(model.n_layers)
        self.mlp = [f"blocks.{i}.hook_mlp_out" for i in range(model.n_layers)]
        self.names = [*self.names, *self.resid, *self.mlp]

    def values(self, model: Model, batch: Any, logits: Tensor | None) -> dict[str, Tensor]:
        resid = self.along(self.resid)
        rows = super().values(model, batch, logits)
        return rows | {"embed": resid[0], "mlp": self.along(self.mlp), "resid": resid}

    def result(self) -> Parts:
        return Parts(**{name: self.rows[name] for name in Parts._fields})


class SourceParts(NamedTuple):
    """Contributions by source token and attention weights; prompts end at the last source, padding is 0."""

    values: Float[Tensor, "layer head prompt src"]
    pattern: Float[Tensor, "layer head prompt src"]


@dataclass(eq=False)
class Sources(Reader[SourceParts]):
    """pattern[dest, src] · (v_src · W_O r̂) for every head and source token, at one destination.

    Everything is reduced inside the hooks: no tensor of layer x head x dest x src, nor of source x d_model per head,
    outlives its layer.

    Attributes:
        vector: a direction, or a result that has one (its unit vector is used), or a vector.
        pos: the destination, counted from the end.
        check: verify that sources sum to z · W_O r̂.
    """

    vector: Any
    pos: int = -1
    check: bool = True
    axis: ClassVar[int] = -2
    fill: ClassVar[float | None] = 0.0

    def begin(self, model: Model, tokens: Any) -> None:
        super().begin(model, tokens)
        check_position(tokens, self.pos)
        self.readout = Readout.of(model, vector_of(model, self.vector))

    def hooks(self, model: Model, batch: Any) -> Hooks:
        by_layer: list[dict[int, Tensor]] = [{} for _ in range(5)]
        self.written, self.weights, self.scales, self.summed, self.sizes = by_layer
        self.lengths: Tensor | None = None
        self.of_values: Tensor | None = None
        found: Hooks = []
        for layer in range(model.n_layers):
            base = f"blocks.{layer}.attn"
            found += [
                (f"{base}.hook_v", partial(self._on_values, model, layer)),
                (f"{base}.hook_pattern", partial(self._on_pattern, batch.mask, layer)),
            ]
            if self.check:
                found.append((f"{base}.hook_z", partial(self._on_z, model, layer)))
            if (site := self.readout.scale_sites[layer]) is not None:
                found.append((site, partial(self._on_scale, layer)))
        return found

    def _on_values(self, model: Model, layer: int, v: Tensor, hook: Any) -> None:
        v, r = heads_apart(v, hook, model.d_head), self.readout.vector
        vectors = by_group(self.readout.heads[layer], 0, v.shape[2])
        self.of_values = torch.einsum("bskd,kgd->kgbs", wide(v).to(r), vectors).flatten(0, 1)
        if self.check:
            length = wide(v).to(r).norm(dim=-1).permute(2, 0, 1)
            self.lengths = torch.einsum("kbs,kg->kgbs", length, vectors.norm(dim=-1)).flatten(0, 1)

    def _on_pattern(self, mask: Tensor, layer: int, p: Tensor, hook: Any) -> None:
        assert self.of_values is not None
        row = wide(p[:, :, self.pos]).to(self.readout.vector).transpose(0, 1)
        row = row * mask  # the pattern of padding is not defined
        self.weights[layer], self.written[layer] = row, row * self.of_values
        if self.lengths is not None:
            self.sizes[layer] = (row * self.lengths).sum(-1)
        self.of_values = self.lengths = None

    def _on_z(self, model: Model, layer: int, z: Tensor, hook: Any) -> None:
        heads = wide(z[:, self.pos].reshape(len(z), -1, model.d_head)).to(self.readout.vector)
        self.summed[layer] = torch.einsum("bhd,hd->hb", heads, self.readout.heads[layer])

    def _on_scale(self, layer: int, s: Tensor, hook: Any) -> None:
        self.scales[layer] = wide(s[:, self.pos, 0]).to(self.readout.vector)

    def values(self, model: Model, batch: Any, logits: Tensor | None) -> dict[str, Tensor]:
        if self.check:
            self._check_sources(model)
        for layer, scale in self.scales.items():
            self.written[layer] = self.written[layer] / scale[:, None]
        found = {"values": self.written, "pattern": self.weights}
        return {name: torch.stack([rows[i] for i in range(model.n_layers)]) for name, rows in found.items()}

    def _check_sources(self, model: Model) -> None:
        """Sources must sum to z · W_O r̂, relative to sum_s pattern[s] |v_s| |W_O r̂|.

        That length bounds the rounding of z whatever the order of the sum and however much of it cancels; the parts
        themselves do not, since values nearly orthogonal to W_O r̂ are rounded at their full length.
        """
        tolerance = SOURCES_TOLERANCE.get(model.dtype, 5e-3)
        for layer, parts in self.written.items():
            gap = float(((parts.sum(-1) - self.summed[layer]).abs() / self.sizes[layer].clamp_min(1e-30)).max())
            if not gap <= tolerance:
                raise ModelError(
                    f"{model.name}, layer {layer}: sources miss the head's output by {gap:.2g} of their size (limit "
                    f"{tolerance:g}); its values or patterns are changed after their hook points, so only "
                    "head contributions are exact here"
                )

    def result(self) -> SourceParts:
        return SourceParts(**self.rows)


@dataclass(eq=False)
class AttentionByRegion(Reader[Tensor]):
    """Attention of every head from each post-instruction position to each region of the prompt."""

    def hooks(self, model: Model, batch: Any) -> Hooks:
        self.found: list[Tensor] = []
        dtype = torch.promote_types(model.dtype, torch.float32)
        regions = torch.stack([batch.region(name) for name in REGIONS], -1).to(model.device, dtype)

        def read(p: Tensor, hook: Any) -> None:
            weights = wide(p[:, :, -batch.n_post :]).to(regions) * batch.mask[:, None, None]
            self.found.append(torch.einsum("bhqk,bkr->hqrb", weights, regions))

        return [(f"blocks.{layer}.attn.hook_pattern", read) for layer in range(model.n_layers)]

    def values(self, model: Model, batch: Any, logits: Tensor | None) -> dict[str, Tensor]:
        return {"attention": torch.stack(self.found)}

    def result(self) -> Float[Tensor, "layer head query region prompt"]:
        return self.rows["attention"]


class RegionShares(NamedTuple):
    """A region's share <Y_region, Y> / |Y|² of what attention writes at the last position."""

    layers: Float[Tensor, "layer prompt"]  # of all heads of a layer together
    top: Float[Tensor, "prompt"]  # of the chosen heads together


@dataclass(eq=False)
class RegionShare(Reader[RegionShares]):
    """The share of one region's tokens in what attention writes at the last position (paper section 5.2).

    Attributes:
        heads: whose write ``RegionShares.top`` is about.
        region: name of the region.
    """

    heads: Sequence[Head] = ()
    region: str = "suffix"

    def begin(self, model: Model, tokens: Any) -> None:
        super().begin(model, tokens)
        self.dtype = torch.promote_types(model.dtype, torch.float32)
        self.weights = [
            model.backend.output_weight(layer).detach().to(model.device, self.dtype) for layer in range(model.n_layers)
        ]

    def hooks(self, model: Model, batch: Any) -> Hooks:
        self.found: list[Tensor] = []
        self.parts: list[Tensor] = []
        self.v: Tensor | None = None
        regions = torch.stack([batch.region(name) for name in REGIONS], -1).to(model.device, self.dtype)
        found: Hooks = []
        for layer in range(model.n_layers):
            found += [
                (f"blocks.{layer}.attn.hook_v", partial(self._on_values, model)),
                (f"blocks.{layer}.attn.hook_pattern", partial(self._on_pattern, batch.mask, regions, layer)),
            ]
        return found

    def _on_values(self, model: Model, v: Tensor, hook: Any) -> None:
        self.v = wide(heads_apart(v, hook, model.d_head)).to(model.device, self.dtype)

    def _on_pattern(self, mask: Tensor, regions: Tensor, layer: int, p: Tensor, hook: Any) -> None:
        assert self.v is not None
        weights = wide(p[:, :, -1]).to(regions) * mask[:, None]
        grouped = by_group(weights, 1, self.v.shape[2])
        z = torch.einsum("bkgs,bskd,bsr->bkgrd", grouped, self.v, regions).flatten(1, 2)
        self.v = None
        # What each region writes: the norm after it, if any, divides all alike and leaves shares as they are.
        writes = torch.einsum("bhrd,hde->bhre", z, self.weights[layer])
        self.found.append(self._share(writes.sum(1)))
        self.parts += [writes[:, head] for lay, head in self.heads if lay == layer]

    def _share(self, writes: Float[Tensor, "batch region d_model"]) -> Float[Tensor, "batch"]:
        whole = writes.sum(1)
        part = writes[:, REGIONS.index(self.region)]
        return (part * whole).sum(-1) / (whole * whole).sum(-1).clamp_min(1e-30)

    def values(self, model: Model, batch: Any, logits: Tensor | None) -> dict[str, Tensor]:
        rows = {"layers": torch.stack(self.found)}
        if self.parts:
            rows["top"] = self._share(torch.stack(self.parts).sum(0))
        return rows

    def result(self) -> RegionShares:
        return RegionShares(self.rows["layers"], self.rows.get("top", torch.full((self.n,), float("nan"))))
