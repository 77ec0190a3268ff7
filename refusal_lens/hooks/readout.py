"""Weights and norms between a sublayer and the residual stream, folded into the vector that is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .base import Model


@dataclass(frozen=True)
class NormWeights:
    """A norm as ``x -> (x - mean if centred) / scale * weight + bias``; ``scale`` is its hook_scale.

    Attributes:
        site: name of the norm, so that ``f"{site}.hook_scale"`` is its hook point.
        weight: what the normalized stream is multiplied by (Gemma's offset of 1 included); None for ones.
        bias: added at the end, or None.
        centred: whether the mean over d_model is taken out first (LayerNorm).
    """

    site: str
    weight: Float[Tensor, "d_model"] | None
    bias: Float[Tensor, "d_model"] | None
    centred: bool


def through_norm(vector: Float[Tensor, "*batch d_model"], norm: NormWeights) -> Float[Tensor, "*batch d_model"]:
    """``u`` such that norm(x) · vector = x · u / scale + bias · vector."""
    u = vector if norm.weight is None else vector * norm.weight.to(vector)
    return u - u.mean(-1, keepdim=True) if norm.centred else u


def attention_write(model: Model, layer: int, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
    """What attention's output ``x`` adds to the stream, but for a post-norm's scale and bias."""
    norm = model.backend.post_norm(layer, "attn")
    if norm is None:
        return x * model.backend.write_scale
    x = x - x.mean(-1, keepdim=True) if norm.centred else x
    return x if norm.weight is None else x * norm.weight.to(x)


class BeforeWrite(NamedTuple):
    """A vector as a sublayer's output sees it: output · ``vector`` / scale + ``outside`` is its write along the vector.

    Attributes:
        vector: with the post-norm's weight and the model's multiplier of writes.
        site: hook point of the post-norm's scale; None where there is none.
        outside: the post-norm's bias along the vector.
    """

    vector: Float[Tensor, "d_model"]
    site: str | None
    outside: Float[Tensor, ""]

    @classmethod
    def of(cls, model: Model, layer: int, part: str, vector: Float[Tensor, "d_model"]) -> BeforeWrite:
        """``vector`` before the write of a layer's ``part``, "attn" or "mlp"."""
        norm, none = model.backend.post_norm(layer, part), torch.zeros_like(vector[0])
        if norm is None:
            scale = model.backend.write_scale
            return cls(vector if scale == 1 else vector * scale, None, none)
        outside = none if norm.bias is None else norm.bias.to(vector) @ vector
        return cls(through_norm(vector, norm), f"{norm.site}.hook_scale", outside)


@dataclass(frozen=True)
class Readout:
    """A vector as each sublayer sees it: what to multiply z and the biases by, and the post-norm's place.

    Attributes:
        vector: the vector itself, float32 or float64.
        heads: W_O u of every layer, u being the vector before the post-norm.
        scale_sites: hook point of each layer's post-norm scale, or None.
        bias_inside: b_O · u, divided by the scale with the heads.
        bias_outside: the post-norm's bias · vector.
    """

    vector: Float[Tensor, "d_model"]
    heads: Float[Tensor, "layer head d_head"]
    scale_sites: tuple[str | None, ...]
    bias_inside: Float[Tensor, "layer"]
    bias_outside: Float[Tensor, "layer"]

    @classmethod
    def of(cls, model: Model, vector: Float[Tensor, "d_model"]) -> Readout:
        """Prepare ``vector`` for ``model``'s weights as they are now (edits in place count)."""
        backend = model.backend
        # 64 bits where the model has them, else 32.
        r = vector.to(model.device, torch.promote_types(model.dtype, torch.float32))
        heads, sites, inside, outside = [], [], [], []
        for layer in range(model.n_layers):
            before, bias = BeforeWrite.of(model, layer, "attn", r), backend.attn_bias(layer)
            heads.append(backend.output_weight(layer).detach().to(r) @ before.vector)
            sites.append(before.site)
            inside.append(torch.zeros_like(r[0]) if bias is None else bias.to(r) @ before.vector)
            outside.append(before.outside)
        return cls(r, torch.stack(heads), tuple(sites), torch.stack(inside), torch.stack(outside))
