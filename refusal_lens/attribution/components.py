"""The residual stream along one vector, taken apart into its writes, exactly (the paper's direct feature attribution).

A head costs O(d_head): z · (W_O r̂). Where a norm stands between attention and the stream, r̂ is first multiplied by
its weight and the result divided by the scale that the norm had on this prompt; both are linear, so parts still sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ModelError, PromptError
from ..hooks.readout import NormWeights, Readout, through_norm
from ..models.chat import Tokens
from ..models.model import HookedChatModel
from ..records.direction import Direction
from ..tensors import wide
from .records import ComponentContributions, HeadContributions, NeuronContributions

# Parts against hook_attn_out, relative to its length: the model rounds each head's sum to its dtype, and norms
# run in float32 in every model.
PARTS_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}


def at(pos: int) -> slice:
    """Position ``pos`` (counted from the end) as a slice that keeps the axis.

    Raises:
        PromptError: a position counted from the start, which padding would shift.
    """
    if pos >= 0:
        raise PromptError(f"position {pos} counts from the start; count from the end (-1 is the last token)")
    return slice(pos, pos + 1 or None)


def check_position(tokens: Tokens, pos: int) -> None:
    """Refuse a position before the first token of the shortest prompt."""
    at(pos)
    if -pos > int(tokens.lengths.min()):
        raise PromptError(
            f"position {pos} lies before the first token of a prompt of {int(tokens.lengths.min())} tokens"
        )


def component_contributions(
    model: HookedChatModel,
    prompts: Sequence[str],
    direction: Direction,
    *,
    suffixes: Sequence[str] | None = None,
    pos: int = -1,
    check: bool = True,
) -> ComponentContributions:
    """What the embedding, every head, attention bias and MLP write along r̂ (paper section 5.1, Fig. 6a).

    Interventions active on the model act; one that edits hook_attn_out itself needs ``check=False``, because the
    heads' parts are read before the edit.

    Args:
        model: the model.
        prompts: requests.
        direction: its unit vector is used, so values are in residual-stream units.
        suffixes: one per prompt (with its leading space), or None.
        pos: position, counted from the end.
        check: verify on every prompt that heads and bias sum to hook_attn_out.

    Raises:
        DirectionError: a direction of another model.
        ModelError: the parts do not sum to what the attention layer wrote.
    """
    model.check_direction(direction)
    tokens = model.tokenize(prompts, suffixes)
    check_position(tokens, pos)
    readout = Readout.of(model, direction.unit)
    collected = Collected(model, len(tokens))
    for batch in model.batches(tokens):
        collected.put(batch, decompose(model, batch, readout, pos, check)[0])
    return ComponentContributions(**collected.rows, prompts=texts(prompts, suffixes), pos=pos, direction=direction)


def head_contributions(
    model: HookedChatModel,
    prompts: Sequence[str],
    direction: Direction,
    *,
    suffixes: Sequence[str] | None = None,
    pos: int = -1,
    check: bool = True,
) -> HeadContributions:
    """What every head writes along r̂; arguments and errors as in ``component_contributions``."""
    return component_contributions(
        model, prompts, direction, suffixes=suffixes, pos=pos, check=check
    ).head_contributions()


def texts(prompts: Sequence[str], suffixes: Sequence[str] | None) -> tuple[str, ...]:
    """The requests as they were asked."""
    return tuple(p + s for p, s in zip(prompts, suffixes or [""] * len(prompts), strict=True))


class Collected:
    """Per-batch results put where their prompts stood (last axis), on the CPU."""

    def __init__(self, model: HookedChatModel, n: int):
        self.n, self.dtype = n, torch.promote_types(model.dtype, torch.float32)
        self.rows: dict[str, Tensor] = {}

    def put(self, batch: Tokens, values: dict[str, Float[Tensor, "*rows batch"]]) -> None:
        """Store the columns of one batch."""
        for name, x in values.items():
            if name not in self.rows:
                self.rows[name] = torch.empty(*x.shape[:-1], self.n, dtype=self.dtype)
            self.rows[name][..., list(batch.indices)] = x.to("cpu", self.dtype)


def decompose(
    model: HookedChatModel,
    batch: Tokens,
    readout: Readout,
    pos: int,
    check: bool,
    extra: Sequence[str] = (),
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The rows of ``ComponentContributions`` for one batch, and the ``extra`` sites asked for (one position each)."""
    layers = range(model.n_layers)
    names = {
        "resid": [f"blocks.{i}.hook_resid_pre" for i in layers] + [f"blocks.{model.n_layers - 1}.hook_resid_post"],
        "z": [f"blocks.{i}.attn.hook_z" for i in layers],
        "attn": [f"blocks.{i}.hook_attn_out" for i in layers],
        "mlp": [f"blocks.{i}.hook_mlp_out" for i in layers],
    }
    scales = [site for site in readout.scale_sites if site]
    sites = [site for group in names.values() for site in group]
    cached = model.cache(batch, [*sites, *scales, *extra], positions=at(pos))
    r = readout.vector

    def along(sites: list[str]) -> Tensor:
        return torch.stack([wide(cached[name][:, 0]).to(r) @ r for name in sites])

    resid, attn = along(names["resid"]), along(names["attn"])
    heads, biases = [], []
    for layer in layers:
        z = wide(cached[names["z"][layer]][:, 0]).to(r)
        z = z.reshape(len(z), -1, model.d_head)  # some attention bridges give heads side by side
        share = torch.einsum("bhd,hd->hb", z, readout.heads[layer])
        inside = readout.bias_inside[layer].expand(len(z))
        if (site := readout.scale_sites[layer]) is not None:
            scale = wide(cached[site][:, 0, 0]).to(r)
            share, inside = share / scale, inside / scale
        heads.append(share)
        biases.append(inside + readout.bias_outside[layer])
    rows = {
        "embed": resid[0],
        "heads": torch.stack(heads),
        "attn_bias": torch.stack(biases),
        "mlp": along(names["mlp"]),
        "resid": resid,
    }
    if check:
        lengths = torch.stack([wide(cached[name][:, 0]).norm(dim=-1) for name in names["attn"]]).to(r)
        _check_heads(model, rows, attn, lengths * r.norm())
    return rows, {name: cached[name] for name in extra}


def _check_heads(model: HookedChatModel, rows: dict[str, Tensor], attn: Tensor, size: Tensor) -> None:
    """Heads and bias must sum to hook_attn_out · r̂, relative to the lengths of both."""
    gap = (rows["heads"].sum(1) + rows["attn_bias"] - attn).abs() / size.clamp_min(1e-30)
    layer = int(gap.amax(-1).argmax())
    tolerance = PARTS_TOLERANCE.get(model.dtype, 4e-2)
    if not float(gap.max()) <= tolerance:
        raise ModelError(
            f"{model.name}, layer {layer}: the heads and the bias miss hook_attn_out by {float(gap.max()):.2g} of its "
            f"length (limit {tolerance:g}); its attention output is scaled, gated or edited in a way not known here. "
            "Under an intervention that edits hook_attn_out pass check=False; else use whole components only"
        )


def neuron_contributions(
    model: HookedChatModel,
    prompts: Sequence[str],
    direction: Direction,
    *,
    suffixes: Sequence[str] | None = None,
    pos: int = -1,
    top: int = 50,
    layers: Sequence[int] | None = None,
) -> NeuronContributions:
    """What single MLP neurons write along r̂: the ``top`` ones by mean magnitude, and the rest by layer.

    Args:
        layers: layers to look at; all if None.

    Raises:
        ModelError: a mixture of experts, whose neurons differ from token to token.
    """
    model.check_direction(direction)
    tokens = model.tokenize(prompts, suffixes)
    check_position(tokens, pos)
    r = direction.unit.to(model.device, torch.promote_types(model.dtype, torch.float32))
    chosen = list(range(model.n_layers) if layers is None else layers)
    values: list[Tensor] = []
    rest = Collected(model, len(tokens))
    for layer in chosen:
        weight, norm = model.backend.neuron_weight(layer), model.backend.post_norm(layer, "mlp")
        if weight is None:
            raise ModelError(
                f"{model.name}, layer {layer}: no output weight by neuron (a mixture of experts); use "
                "component_contributions, which has whole MLPs"
            )
        u = r if norm is None else through_norm(r, norm)
        out, bias = weight.detach().to(r) @ u, model.backend.mlp_bias(layer)
        inside = 0.0 if bias is None else float(bias.to(r) @ u)
        outside = 0.0 if norm is None or norm.bias is None else float(norm.bias.to(r) @ r)
        found = Collected(model, len(tokens))
        for batch, cached in _mlp_activations(model, tokens, layer, norm, pos):
            share = wide(cached[f"blocks.{layer}.mlp.hook_post"][:, 0]).to(r) * out
            scale = 1.0 if norm is None else wide(cached[f"{norm.site}.hook_scale"][:, 0]).to(r)
            fixed = torch.full_like(share[:, :1], inside) / scale + outside
            found.put(batch, {"neurons": (share / scale).T})
            rest.put(batch, {str(layer): ((share / scale).sum(-1) + fixed[:, 0])})
        values.append(found.rows["neurons"])
    sizes = torch.cat([x.mean(-1).abs() for x in values])
    owner = [(layer, neuron) for layer, x in zip(chosen, values, strict=True) for neuron in range(len(x))]
    best = sizes.topk(min(top, len(sizes))).indices.tolist()
    kept = torch.cat(values)[best]
    left = torch.stack([rest.rows[str(layer)] for layer in chosen])
    for row, index in zip(kept, best, strict=True):
        left[chosen.index(owner[index][0])] -= row
    layers_of, neurons_of = ([owner[i][k] for i in best] for k in (0, 1))
    return NeuronContributions(kept, tuple(layers_of), tuple(neurons_of), left, tuple(chosen), texts(prompts, suffixes))


def _mlp_activations(
    model: HookedChatModel, tokens: Tokens, layer: int, norm: NormWeights | None, pos: int
) -> Iterator[tuple[Tokens, dict[str, Tensor]]]:
    """One layer at a time: all neurons of all layers at once would be the largest tensor of the run."""
    names = [f"blocks.{layer}.mlp.hook_post"] + ([] if norm is None else [f"{norm.site}.hook_scale"])
    for batch in model.batches(tokens):
        yield batch, model.cache(batch, names, positions=at(pos))
