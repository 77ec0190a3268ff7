"""What a vector of the residual stream says in words: through the final norm and the unembedding.

TransformerLens's ``logit_readout`` adds the biases of norm and unembedding, which are the same whatever the vector and
would rank frequent tokens first, caps the logits, and knows bridges only. Without bias and cap both rank alike (tests).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.prompts import PromptsLike
from ..errors import SettingError
from ..hooks.base import check_size
from ..hooks.readers import Cache, vector_of
from ..hooks.readout import attention_write
from ..models.model import HookedChatModel
from ..records.direction import DirectionLike, as_direction
from ..records.labels import Head, head_label
from ..tensors import random_units, wide
from .token_records import Lens

COLUMNS = 16384  # of the unembedding that are held in float32 at a time


def lens(
    model: HookedChatModel,
    vectors: DirectionLike | Mapping[str, DirectionLike | Float[Tensor, "d_model"]],
    *,
    top: int = 8,
    n_random: int = 19,
    through: Any = None,
    layer: int | None = None,
) -> Lens:
    """The tokens that vectors of the residual stream favour most, and those that they disfavour most (of -v: the same
    lists in turn), beside random directions.

    A vector's logits are those of a stream along it: normalized to a mean square of 1, times the final norm's weight
    and the unembedding, without biases, minus their mean over the vocabulary. The vector's length does not matter.

    Args:
        vectors: a direction, or directions and vectors by name (``head_writes`` gives those of heads).
        top: tokens at each end.
        n_random: random directions to compare with.
        through: a fitted ``JacobianLens`` of TransformerLens (``transformer_lens.tools.analysis``): vectors first go
            through its matrix of a layer, the mean derivative of the last block's output (Gurnee et al. 2026). Without
            it a vector is read as it stands: the logit lens.
        layer: of ``through``: the layer at whose input the vectors are; by default that of the first direction.

    Raises:
        DirectionError: a direction of another model, or a vector of another width.
        SettingError: no vector, or more tokens than the vocabulary has.

    Example:
        >>> said = rl.attribution.lens(model, found, top=3)
        >>> said.sizes, len(said.top_tokens[0])
        ({'vector': 2, 'rank': 3, 'random': 19}, 3)
    """
    named: dict[str, Any] = dict(vectors) if isinstance(vectors, Mapping) else {"direction": vectors}
    n_vocab = min(model.d_vocab, len(model.tokenizer))  # embeddings may be padded
    if not named or not 1 <= top <= n_vocab or n_random < 1:
        raise SettingError(f"a lens takes vectors, 1 to {n_vocab} tokens (not {top}) and at least 1 random direction")
    rows = [vector_of(model, vector) for vector in named.values()]
    for row in rows:
        check_size(row, model)
    every = torch.stack([*rows, *random_units(n_random, model.d_model).to(rows[0])])
    if through is not None:
        every = _transported(model, through, every, layer, named)
    logits = _logits(model, every, n_vocab)
    shown = logits[: len(rows) + 1]  # the first random direction too
    ends = [shown.topk(top), (-shown).topk(top)]
    words = [tuple(tuple(model.tokenizer.decode([i]) for i in row) for row in end.indices.tolist()) for end in ends]
    highest = logits[len(rows) :].amax(-1).cpu()
    return Lens(ends[0].values.cpu(), -ends[1].values.cpu(), highest, (*named, "random direction"), *words)


def _transported(
    model: HookedChatModel, through: Any, x: Float[Tensor, "n d_model"], layer: int | None, named: Mapping[str, Any]
) -> Float[Tensor, "n d_model"]:
    """Vectors at a layer's input, by the Jacobian lens of the block before it, in the last block's output."""
    if layer is None:
        own = [as_direction(value) for value in named.values() if not isinstance(value, Tensor)]
        if not own:
            raise SettingError("name the layer that the vectors belong to: layer=...")
        layer = own[0].layer
    try:
        through.validate_model(model.tl)
    except (TypeError, ValueError) as error:  # not a bridge, other weights than the lens was fitted on, another size
        raise SettingError(f"this Jacobian lens is not one of {model.name}: {error}") from error
    if layer - 1 not in through.source_layers:
        known = ", ".join(str(source + 1) for source in through.source_layers)
        raise SettingError(f"this Jacobian lens reads vectors at the input of layers {known}, not at layer {layer}")
    return through.transport(x, layer - 1)


def _logits(model: HookedChatModel, x: Float[Tensor, "n d_model"], n_vocab: int) -> Float[Tensor, "n vocab"]:
    """Each vector through the final norm and the unembedding, centred over the vocabulary."""
    norm, weight = model.backend.final_norm(), model.backend.unembed_weight().detach()[:, :n_vocab]
    x = x - x.mean(-1, keepdim=True) if norm.centred else x
    x = x / x.square().mean(-1, keepdim=True).sqrt()
    x = (x if norm.weight is None else x * norm.weight.to(x)) * model.backend.logit_scale
    logits = torch.cat([x @ some.to(x) for some in weight.split(COLUMNS, 1)], 1)
    return logits - logits.mean(-1, keepdim=True)


def head_writes(
    model: HookedChatModel, prompts: PromptsLike, heads: Sequence[Head], *, suffixes: Sequence[str] | None = None
) -> dict[str, Float[Tensor, "d_model"]]:
    """Mean of what each head adds to the residual stream at the last position, by its label.

    A norm after attention is frozen at each prompt's scale, as in ``attribution.heads``; biases belong to no head.

    Example:
        >>> writes = rl.attribution.head_writes(model, data.harmful.test, [(2, 0)])
        >>> shares = rl.attribution.heads(model, data.harmful.test, found).values[2, 0].mean()
        >>> abs(float(writes["L2H0"] @ found.direction.unit - shares)) < 1e-4
        True
    """
    norms = {layer: model.backend.post_norm(layer, "attn") for layer, _ in heads}
    scales = {layer: f"{norm.site}.hook_scale" for layer, norm in norms.items() if norm is not None}
    reader = Cache([*(f"blocks.{layer}.attn.hook_z" for layer in norms), *scales.values()], slice(-1, None))
    kept = model.run(prompts, suffixes, read=reader)[reader]
    found = {}
    for layer, head in heads:
        z = wide(kept[f"blocks.{layer}.attn.hook_z"]).flatten(1).unflatten(1, (-1, model.d_head))[:, head]
        if layer in scales:
            z = z / wide(kept[scales[layer]]).reshape(-1, 1)
        write = z.mean(0).to(model.device) @ model.backend.output_weight(layer)[head].detach().to(model.device, z.dtype)
        found[head_label(layer, head)] = attention_write(model, layer, write).cpu()
    return found
