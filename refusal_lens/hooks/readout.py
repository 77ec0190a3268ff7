"""Weights and norms between a sublayer and the residual stream, folded into the vector that is read."""

from __future__ import annotations

from dataclasses import dataclass

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


def through_norm(vector: Float[Tensor, "d_model"], norm: NormWeights) -> Float[Tensor, "d_model"]:
    """``u`` such that norm(x) · vector = x · u / scale + bias · vector."""
    u = vector if norm.weight is None else vector * norm.weight.to(vector)
    return u - u.mean() if norm.centred else u


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
            norm = backend.post_norm(layer, "attn")
            u = r if norm is None else through_norm(r, norm)
            bias = backend.attn_bias(layer)
            heads.append(backend.output_weight(layer).detach().to(r) @ u)
            sites.append(None if norm is None else f"{norm.site}.hook_scale")
            inside.append(torch.zeros_like(r[0]) if bias is None else bias.to(r) @ u)
            outside.append(torch.zeros_like(r[0]) if norm is None or norm.bias is None else norm.bias.to(r) @ r)
        return cls(r, torch.stack(heads), tuple(sites), torch.stack(inside), torch.stack(outside))
