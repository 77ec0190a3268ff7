"""The residual stream along one vector, split exactly into its writes (the paper's direct feature attribution).

A head costs O(d_head): z · (W_O r̂). Where a norm stands between attention and the stream, r̂ is first multiplied by
its weight and the result divided by the scale that the norm had on this prompt; both are linear, so parts still sum.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.prompts import PromptsLike, as_prompts, as_suffixes
from ..engines.base import Engine
from ..errors import ModelError
from ..hooks.attention_readers import Components, Heads
from ..hooks.base import Layers, Model, layers_of
from ..hooks.readers import Kept, at, check_position, vector_of
from ..hooks.readout import BeforeWrite
from ..models.model import HookedChatModel
from ..records.direction import Direction, DirectionLike, as_direction
from ..tensors import wide
from .records import ComponentContributions, HeadContributions, NeuronContributions


def component_contributions(
    model: HookedChatModel,
    prompts: PromptsLike,
    direction: DirectionLike,
    *,
    suffixes: Sequence[str] | None = None,
    pos: int = -1,
    check: bool = True,
) -> ComponentContributions:
    """What the embedding, every head, attention bias and MLP write along r̂ (paper section 5.1, Fig. 6a).

    Active interventions apply; one that edits hook_attn_out itself needs ``check=False``, because the
    heads' parts are read before the edit.

    Args:
        direction: only its unit vector is used, so values are in residual-stream units.
        suffixes: one per prompt (with its leading space), or None.
        pos: position, counted from the end.
        check: verify on every prompt that heads and bias sum to hook_attn_out.

    Raises:
        DirectionError: a direction of another model.
        ModelError: the parts do not sum to what the attention layer wrote.

    Example:
        >>> parts = rl.attribution.component_contributions(model, data.harmful.test[:4], found)
        >>> bool(parts.errors.max() < 1e-3)  # embedding, heads, biases and MLPs add up to the residual stream
        True
    """
    prompts, direction = as_prompts(prompts), as_direction(direction)
    (parts,) = model.run(prompts, suffixes, read=Components(direction, pos, check))
    return ComponentContributions(**parts._asdict(), prompts=texts(prompts, suffixes), pos=pos, direction=direction)


def heads(
    model: HookedChatModel,
    prompts: PromptsLike,
    direction: DirectionLike,
    *,
    suffixes: Sequence[str] | None = None,
    pos: int = -1,
    check: bool = True,
    engine: Engine | None = None,
) -> HeadContributions:
    """What every head writes along r̂; arguments and errors as in ``component_contributions``; ``engine`` spreads blocks
    of 64 prompts over its workers.

    Example:
        >>> heads = rl.attribution.heads(model, data.harmful.test[:4], found)
        >>> heads.sizes
        {'layer': 5, 'head': 4, 'prompt': 4}
        >>> heads.sel("L1H0").values.shape
        torch.Size([4])
    """
    prompts, direction = as_prompts(prompts), as_direction(direction)
    (values,) = model.run(prompts, suffixes, read=Heads(direction, pos, check), engine=engine)
    return HeadContributions(values, direction, texts(prompts, suffixes), pos)


def texts(prompts: PromptsLike, suffixes: str | Sequence[str] | None) -> tuple[str, ...]:
    """The requests with their suffixes."""
    requests = as_prompts(prompts)
    return tuple(p + s for p, s in zip(requests, as_suffixes(suffixes, len(requests)), strict=True))


class _Neurons(Kept[dict[int, tuple[Tensor, Tensor]]]):
    """What single MLP neurons write along r̂, and bias and post-norm besides, by layer."""

    def __init__(self, direction: Direction, layers: Sequence[int], pos: int):
        self.direction, self.layers, self.pos = direction, layers, pos

    def begin(self, model: Model, tokens: Any) -> None:
        super().begin(model, tokens)
        check_position(tokens, self.pos)
        self.where, self.names = at(self.pos), []
        self.post = {layer: f"{model.backend.part(layer, 'mlp')[0]}.hook_post" for layer in self.layers}
        r = vector_of(model, self.direction)
        self.readouts: dict[int, tuple[Tensor, float, float, str | None]] = {}
        for layer in self.layers:
            weight, before = model.backend.neuron_weight(layer), BeforeWrite.of(model, layer, "mlp", r)
            if weight is None:
                raise ModelError(
                    f"{model.name}, layer {layer}: no output weight by neuron (a mixture of experts); use "
                    "component_contributions, which has whole MLPs"
                )
            bias = model.backend.mlp_bias(layer)
            inside = 0.0 if bias is None else float(bias.to(r) @ before.vector)
            self.readouts[layer] = weight.detach().to(r) @ before.vector, inside, float(before.outside), before.site
            self.names += [self.post[layer]] + ([] if before.site is None else [before.site])

    def values(self, model: Model, batch: Any, logits: Tensor | None) -> dict[str, Tensor]:
        found = {}
        for layer, (out, inside, outside, site) in self.readouts.items():
            share = wide(self.kept[self.post[layer]][:, 0]).to(out) * out
            scale = 1.0 if site is None else wide(self.kept[site][:, 0]).to(out)
            fixed = torch.full_like(share[:, :1], inside) / scale + outside
            found[f"neurons {layer}"] = (share / scale).T
            found[f"rest {layer}"] = (share / scale).sum(-1) + fixed[:, 0]
        return found

    def result(self) -> dict[int, tuple[Tensor, Tensor]]:
        return {layer: (self.rows[f"neurons {layer}"], self.rows[f"rest {layer}"]) for layer in self.layers}


def neuron_contributions(
    model: HookedChatModel,
    prompts: PromptsLike,
    direction: DirectionLike,
    *,
    suffixes: Sequence[str] | None = None,
    pos: int = -1,
    top: int = 50,
    layers: Layers = None,
) -> NeuronContributions:
    """What single MLP neurons write along r̂: the ``top`` ones by mean magnitude, and the rest by layer.

    Args:
        layers: layers to read; all if None.

    Raises:
        ModelError: a mixture of experts, whose neurons differ from token to token.
    """
    prompts, direction = as_prompts(prompts), as_direction(direction)
    chosen = layers_of(layers, model.n_layers)
    (found,) = model.run(prompts, suffixes, read=_Neurons(direction, chosen, pos))
    values, rests = zip(*(found[layer] for layer in chosen), strict=True)
    owner = [(layer, neuron) for layer, x in zip(chosen, values, strict=True) for neuron in range(len(x))]
    sizes = torch.cat([x.mean(-1).abs() for x in values])
    best = sizes.topk(min(top, len(sizes))).indices.tolist()
    kept, left = torch.cat(values)[best], torch.stack(rests)
    for row, index in zip(kept, best, strict=True):
        left[chosen.index(owner[index][0])] -= row
    in_layers, neurons = (tuple(owner[i][k] for i in best) for k in (0, 1))
    return NeuronContributions(kept, in_layers, neurons, left, tuple(chosen), texts(prompts, suffixes))
