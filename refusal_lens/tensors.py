"""Pure functions on tensors: directions, projections, divergences, log-odds."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .errors import DirectionError

METRIC_EPS = 1e-8  # the paper's eps in log(p + eps) - log(1 - p + eps)
KL_EPS = 1e-6


def unit(vector: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """Scale ``vector`` to length 1 along its last axis.

    Raises:
        DirectionError: if a vector is zero or not finite, which has no direction.
    """
    norm = vector.norm(dim=-1, keepdim=True)
    if not bool((torch.isfinite(norm) & (norm > 0)).all()):
        raise DirectionError("a direction must be finite and not zero; found a norm of 0, inf or NaN")
    return vector / norm


def random_unit(d: int, seed: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, "d"]:
    """A direction drawn uniformly from the sphere: the placebo for every direction."""
    generator = torch.Generator().manual_seed(seed)
    return unit(torch.randn(d, generator=generator, dtype=torch.float64)).to(dtype)


def random_units(n: int, d: int) -> Float[Tensor, "n d"]:
    """``n`` directions to compare with: none is the placebo of a small seed, which may act meanwhile."""
    return torch.stack([random_unit(d, 1_000_000 + i) for i in range(n)])


def project_out(
    x: Float[Tensor, "*batch d"], direction: Float[Tensor, "*rows d"], share: float = 1.0
) -> Float[Tensor, "*batch d"]:
    """``x - r̂ r̂ᵀ x`` (paper section 2.4, directional ablation), in float32 or better, returned in x's dtype.

    Args:
        x: activations.
        direction: unit vector r̂, or one per entry of x's first axis, ``[batch 1 d]``.
        share: how much of the projection is removed.
    """
    full = wide(x)
    r = direction.to(full)
    # Products and one fused step: half the time of (full - (full * r).sum(-1, keepdim=True) * r) on a CPU.
    along = full @ (r[:, None] if r.ndim == 1 else r.mT)
    return torch.addcmul(full, along, r, value=-share).to(x.dtype)


def cosine(x: Float[Tensor, "*batch d"], direction: Float[Tensor, "d"]) -> Float[Tensor, "*batch"]:
    """Cosine similarity along the last axis, in float32 or better; 0 where x is zero."""
    full = wide(x)
    return (full @ unit(direction.to(full))) / full.norm(dim=-1).clamp_min(torch.finfo(full.dtype).tiny)


def refusal_log_odds(
    logits: Float[Tensor, "*batch vocab"], token_ids: Int[Tensor, "n"] | list[int] | tuple[int, ...]
) -> Float[Tensor, "*batch"]:
    """log p - log(1 - p), p the summed probability of ``token_ids`` (paper section 2.3; softmax in float64)."""
    ids = torch.as_tensor(token_ids, device=logits.device)
    p = logits.double().softmax(-1)[..., ids].sum(-1)
    return torch.log(p + METRIC_EPS) - torch.log(1 - p + METRIC_EPS)


def kl_divergence(
    baseline: Float[Tensor, "*batch vocab"], other: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch"]:
    """KL(softmax(baseline) || softmax(other)) in float64 nats, with the paper's eps of 1e-6 in both logs."""
    p, q = baseline.double().softmax(-1), other.double().softmax(-1)
    return (p * (torch.log(p + KL_EPS) - torch.log(q + KL_EPS))).sum(-1)


def orthonormal(vectors: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
    """Orthonormal rows with the same leading spans, float64 (QR; the first row keeps its sign).

    Raises:
        DirectionError: rows that are not finite or not linearly independent.
    """
    q, r = torch.linalg.qr(vectors.double().T)
    scale = r.diagonal()
    if not bool(torch.isfinite(vectors).all()) or bool((scale.abs() < 1e-9 * scale.abs().max()).any()):
        raise DirectionError("the directions are not linearly independent (or not finite): ask for fewer")
    return (q * scale.sign()).T


def wide(x: Tensor) -> Tensor:
    """``x`` in float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
