"""The weights of a TransformerLens model that attribution and weight edits read, by TransformerLens's names."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..hooks.readout import NormWeights


def optional_weight(module: Any, name: str) -> Tensor | None:
    """A weight that not every checkpoint has: bridges raise or give None where there is none."""
    try:
        value = getattr(module, name, None)
    except (AttributeError, NotImplementedError, ValueError):
        value = None
    return value.detach() if isinstance(value, Tensor) else None


class WeightAccess:
    """Weights behind one interface; ``Backend`` inherits it.

    Attributes:
        tl: the TransformerLens model.
    """

    tl: Any

    def unembed_weight(self) -> Float[Tensor, "d_model d_vocab"]:
        """W_U."""
        return self.tl.W_U

    def embed_weight(self) -> Float[Tensor, "d_vocab d_model"]:
        """W_E."""
        return self.tl.W_E

    def output_weight(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """W_O of one layer, by query head."""
        return self.tl.blocks[layer].attn.W_O

    def attn_bias(self, layer: int) -> Float[Tensor, "d_model"] | None:
        """b_O of one layer, or None where the checkpoint has none."""
        return optional_weight(self.tl.blocks[layer].attn, "b_O")

    def neuron_weight(self, layer: int) -> Float[Tensor, "d_mlp d_model"] | None:
        """W_out of one layer's MLP; None for a mixture of experts, which has one per expert."""
        return optional_weight(self.tl.blocks[layer].mlp, "W_out")

    def mlp_bias(self, layer: int) -> Float[Tensor, "d_model"] | None:
        """b_out of one layer's MLP, or None."""
        return optional_weight(self.tl.blocks[layer].mlp, "b_out")

    def unembed_bias(self) -> Float[Tensor, "d_vocab"] | None:
        """b_U, or None."""
        return optional_weight(self.tl.unembed, "b_U")

    def logit_cap(self) -> float:
        """The cap c of logits c * tanh(logits / c); 0 for none."""
        cap = getattr(self.tl.cfg, "output_logits_soft_cap", None)
        return float(cap) if cap and cap > 0 else 0.0

    def final_norm(self) -> NormWeights:
        """The norm before the unembedding."""
        return self._norm(self.tl.ln_final, "ln_final")

    def post_norm(self, layer: int, part: str) -> NormWeights | None:
        """The norm between a sublayer's output and the residual stream (Gemma 2 and 3, OLMo 2), or None.

        Args:
            part: "attn" or "mlp".
        """
        name = {"attn": "ln1_post", "mlp": "ln2_post"}[part]
        module = getattr(self.tl.blocks[layer], name, None)
        return None if module is None else self._norm(module, f"blocks.{layer}.{name}")

    def _norm(self, module: Any, site: str) -> NormWeights:
        centred = type(module).__name__.startswith("LayerNorm")
        return NormWeights(site, optional_weight(module, "w"), optional_weight(module, "b"), centred)

    @property
    def device(self) -> torch.device:
        """Device of the embedding: where token ids go."""
        return self.embed_weight().device

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the weights."""
        return self.embed_weight().dtype
