"""Which model a direction belongs to: the basis of the residual stream and the fingerprint of the weights."""

import hashlib
from typing import Any

import torch

from ..errors import DirectionError
from ..records.direction import Direction


def basis_of(tl: Any, backend: Any) -> str:
    """ "raw" for the model's own basis; processing that rotates or centres it gives another name."""
    rows = backend.embed_weight()[:256].float()
    centred = backend.processed() or bool(rows.mean(-1).abs().max() < 1e-5 * rows.abs().max())
    norm = str(getattr(tl.cfg, "normalization_type", "") or "")
    # Centring changes nothing that an RMS-norm model's residual stream holds by default.
    return "centred" if centred and not norm.upper().startswith("RMS") else "raw"


def fingerprint_of(backend: Any) -> str:
    """16 hex digits of sizes and sampled weights (in bfloat16, so that dtype does not matter)."""
    sizes = (backend.n_layers, backend.n_heads, backend.d_model, backend.d_vocab)
    digest = hashlib.sha256(repr(sizes).encode())
    embed, middle = backend.embed_weight(), backend.some_heads(backend.n_layers // 2)
    for sample in (embed[:: max(1, len(embed) // 64)], middle[0], middle[-1]):
        digest.update(sample.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def check_direction(model: Any, direction: Direction) -> None:
    """Refuse a direction of another model or basis with a ``DirectionError`` that has both identities."""
    if direction.unit.shape != (model.d_model,):
        raise DirectionError(
            f"the direction has {direction.unit.shape[-1]} entries and {model.name} has d_model {model.d_model}: "
            "it belongs to another model; extract one from this model"
        )
    if direction.model and direction.model != model.fingerprint:
        raise DirectionError(
            f"the direction belongs to the model with fingerprint {direction.model}, not to {model.name} "
            f"({model.fingerprint}); extract one from this model, or set its model to '' to transfer it on purpose"
        )
    if direction.basis != model.basis:
        raise DirectionError(
            f"the direction lives in the basis {direction.basis!r} and {model.name} is loaded in {model.basis!r}; "
            "load the model without weight processing (no folding, no centring)"
        )
    if not 0 <= direction.layer < model.n_layers:
        raise DirectionError(f"layer {direction.layer} does not exist in {model.name} (n_layers {model.n_layers})")
