"""Weight orthogonalization: the direction projected out of every matrix that writes to the residual stream.

The paper's third intervention (section 2.4 and appendix E): W <- W - r̂ r̂ᵀW. The edit lives in memory, for
measuring, and is gone when the context is left; nothing here writes a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .errors import ModelError
from .interventions import Ablate, write_sites
from .linalg import project_out, unit
from .model import HookedChatModel
from .records import Direction

# Share of a write's length that may be left along r̂: rounding of the weights and of one matrix product.
LEFT_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 1e-2}
CHUNK = 1 << 22  # entries that are held in float32 at a time: the edit needs no second wide copy of a matrix
EXPERT_OUTPUTS = ("down_proj", "w2", "fc2", "c_proj", "wo", "dense_4h_to_h", "output_linear")


@dataclass(frozen=True)
class WritingWeight:
    """One parameter that writes to the residual stream.

    Attributes:
        where: label for messages, e.g. "blocks.3.attn.o.weight".
        module: the module that holds it.
        name: its name there.
        axis: the axis of d_model (a Linear's weight 0, a Conv1D's or an embedding's -1, a bias's -1).
    """

    where: str
    module: nn.Module
    name: str
    axis: int

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter as it is now."""
        found = self.module._parameters[self.name]
        assert found is not None
        return found


@dataclass(frozen=True)
class Orthogonalize:
    """The weight edit as a value, for tables of conditions: ``with Orthogonalize(direction).applied(model): ...``

    Attributes:
        direction: what to project out of the weights.
        allow_gap: edit also where no edit is equivalent to ablation (see ``orthogonalized``).
    """

    direction: Direction
    allow_gap: bool = False

    @contextmanager
    def applied(self, model: HookedChatModel) -> Iterator[HookedChatModel]:
        """``orthogonalized`` with this value's settings."""
        with orthogonalized(model, self.direction, allow_gap=self.allow_gap):
            yield model


@contextmanager
def orthogonalized(
    model: HookedChatModel, direction: Direction, *, allow_gap: bool = False
) -> Iterator[HookedChatModel]:
    """Inside, every write to the residual stream is orthogonal to r̂ by its weights (paper section 2.4).

    Edited are the embedding, the positional embedding, every attention and MLP output, experts, and all output
    biases. The original parameters are set aside, not overwritten, and put back on leaving, also after an
    exception: bit for bit what they were. Memory: one copy of the weights touched. A tied embedding is untied
    inside, so that the unembedding reads as before. Contexts nest; enter it outside of ``model.hooks``.

    Args:
        model: the model; other threads can't use it inside.
        direction: its ``unit`` counts.
        allow_gap: edit also a model with norms after its writes, where the edit is not equivalent to ablation;
            ``orthogonalization_gap`` measures by how much.

    Raises:
        ModelError: norms after the writes, weights that can't be edited, or a write that the edit misses.
        DirectionError: a direction of another model or basis.
    """
    model.check_direction(direction)
    # Both are cached at first use: they must not be those of the edited weights.
    _ = model.fingerprint, model.basis
    norms = post_norm_layers(model)
    if norms and not allow_gap:
        raise ModelError(
            f"{model.name} has a norm after its writes to the residual stream (in {len(norms)} of {model.n_layers} "
            "layers), so no plain edit of weights is equivalent to ablation: use model.hooks(Ablate(direction)), or "
            "allow_gap=True to measure the edit all the same (orthogonalization_gap gives the difference)"
        )
    with model.hooks():  # takes the model's lock: another thread would see edited weights
        swapped: list[tuple[WritingWeight, nn.Parameter]] = []
        try:
            with torch.no_grad():
                _swap(writing_weights(model), unit(direction.unit.double()), swapped)
            if not allow_gap:
                _check_nothing_left(model, direction)
            yield model
        finally:
            for weight, original in reversed(swapped):
                weight.module._parameters[weight.name] = original


def post_norm_layers(model: HookedChatModel) -> list[int]:
    """Layers with a norm between a sublayer's output and the residual stream (Gemma 2 and 3, OLMo 2)."""
    return [n for n in range(model.n_layers) if any(model.backend.post_norm(n, part) for part in ("attn", "mlp"))]


def orthogonalization_gap(model: HookedChatModel, direction: Direction, prompts: Sequence[str]) -> float:
    """Largest difference of any logit, at any token of ``prompts``, between ablation by hooks and by weights.

    0 to rounding for a pre-norm model; a property of the architecture where norms follow the writes. Prompts run
    one by one, since padding is not exact in float64.
    """
    worst = 0.0
    for prompt in prompts:
        tokens = model.tokenize([prompt])
        with model.hooks(Ablate(direction)):
            by_hooks = model.logits(tokens, last_only=False)
        with orthogonalized(model, direction, allow_gap=True):
            by_weights = model.logits(tokens, last_only=False)
        gap = float((by_hooks.double() - by_weights.double()).abs().max())
        worst = gap if gap != gap else max(worst, gap)  # NaN is reported, not dropped
        if worst != worst:
            break
    return worst


def writing_weights(model: HookedChatModel) -> list[WritingWeight]:
    """Every parameter that writes to the residual stream.

    Raises:
        ModelError: a layer whose output weights are not found, or weights that are quantized or offloaded.
    """
    tl = model.tl
    hooked = model.backend.kind == "HookedTransformer"
    found = _named("embed", tl.embed, ("W_E",) if hooked else ("weight",), -1)
    if (positions := _positional(tl)) is not None:
        found += _named("pos_embed", positions, ("W_pos",) if hooked else ("weight",), -1)
    for layer, block in enumerate(tl.blocks):
        for part in ("attn", "mlp"):
            module, where = getattr(block, part, None), f"blocks.{layer}.{part}"
            if module is None:
                continue
            own = _hooked_output(where, module, part) if hooked else _bridge_output(where, module, part)
            if not own:
                raise ModelError(
                    f"{model.name}: the output weights of {where} ({type(module).__name__}) were not found; use "
                    "model.hooks(Ablate(direction)) instead"
                )
            found += own
    for weight in found:
        if not weight.parameter.is_floating_point():
            raise ModelError(
                f"{model.name}: {weight.where} is quantized ({weight.parameter.dtype}), so it can't be edited; load "
                "the model in bfloat16, or use model.hooks(Ablate(direction))"
            )
        if weight.parameter.is_meta:
            raise ModelError(
                f"{model.name}: {weight.where} is offloaded to disk or CPU; use model.hooks(Ablate(direction)), or "
                "load the model without offloading"
            )
    return found


def _positional(tl: Any) -> Any:
    """The learned positional embedding, None for rotary and other models."""
    module = getattr(tl, "pos_embed", None) if "pos_embed" in dict(tl.named_children()) else None
    core = _core(module) if module is not None else None
    return module if core is not None and any(p.ndim == 2 for p in core.parameters(recurse=False)) else None


def _core(module: Any) -> nn.Module:
    """The Hugging Face module inside a bridge component."""
    while (inner := module._modules.get("_original_component")) is not None:
        module = inner
    return module


def _named(where: str, module: Any, names: Sequence[str], axis: int) -> list[WritingWeight]:
    core = _core(module)
    return [WritingWeight(f"{where}.{n}", core, n, axis) for n in names if core._parameters.get(n) is not None]


def _linear(where: str, module: Any) -> list[WritingWeight]:
    """Weight and bias of a Linear or Conv1D."""
    core = _core(module)
    axis = -1 if type(core).__name__ == "Conv1D" else 0
    return _named(where, core, ("weight",), axis) + _named(where, core, ("bias",), -1)


def _hooked_output(where: str, module: Any, part: str) -> list[WritingWeight]:
    if part == "attn":
        return _named(where, module, ("W_O", "b_O"), -1)
    found = _named(where, module, ("W_out", "b_out"), -1)
    for index, expert in enumerate(getattr(module, "experts", ())):
        label = f"{where}.experts.{index}.W_out"
        output = getattr(expert, "W_out", None)
        linear = isinstance(output, nn.Linear)
        found += _linear(label, output) if linear else _named(label, expert, ("W_out", "b_out"), -1)
    return found


def _bridge_output(where: str, module: Any, part: str) -> list[WritingWeight]:
    children = dict(module.named_children())
    name = {"attn": "o", "mlp": "out"}[part]
    if name in children:
        return _linear(f"{where}.{name}", children[name])
    return _expert_outputs(where, module) if part == "mlp" else []


def _expert_outputs(where: str, module: nn.Module) -> list[WritingWeight]:
    """Output weights of a mixture of experts: stacked [expert, d_model, d_mlp] parameters, or one Linear each."""
    found: list[WritingWeight] = []
    for path, inner in module.named_modules():
        label = ".".join(part for part in path.split(".") if part != "_original_component")
        if label.split(".")[-1] in EXPERT_OUTPUTS and "weight" in inner._parameters:
            found += _linear(f"{where}.{label}", inner)
        stacked = inner._parameters.get("down_proj")
        if stacked is not None and stacked.ndim == 3:
            found.append(
                WritingWeight(f"{where}.{label}.down_proj", inner, "down_proj", -1 if _transposed(inner) else 1)
            )
            found += _named(f"{where}.{label}", inner, ("down_proj_bias",), -1)
    return found


def _transposed(experts: nn.Module) -> bool:
    """Whether stacked expert weights are [expert, input, output] (gpt-oss)."""
    return bool(getattr(experts, "is_transposed", False))


def _swap(
    weights: Sequence[WritingWeight],
    direction: Float[Tensor, "d_model"],
    swapped: list[tuple[WritingWeight, nn.Parameter]],
) -> None:
    """Put an edited copy in the place of each parameter, noting what was there before in ``swapped``."""
    edited: dict[int, nn.Parameter] = {}
    for weight in weights:
        original = weight.parameter
        # Layers that share one parameter share its edited copy too.
        if id(original) not in edited:
            new = _projected(original, direction.to(original.device), weight.axis)
            edited[id(original)] = nn.Parameter(new, requires_grad=original.requires_grad)
        swapped.append((weight, original))
        weight.module._parameters[weight.name] = edited[id(original)]


def _projected(parameter: Tensor, direction: Float[Tensor, "d_model"], axis: int) -> Tensor:
    """W - r̂ r̂ᵀW along ``axis`` as a new tensor, a chunk at a time."""
    out = parameter.detach().clone()
    rows = out.movedim(axis, -1)
    if rows.ndim == 1:
        rows.copy_(project_out(rows, direction))
        return out
    step = max(1, CHUNK * len(rows) // rows.numel())
    for start in range(0, len(rows), step):
        rows[start : start + step] = project_out(rows[start : start + step], direction)
    return out


def _check_nothing_left(model: HookedChatModel, direction: Direction) -> None:
    """Measure that what the model writes has no component along r̂: a matrix that was missed would show.

    Raises:
        ModelError: naming the write.
    """
    limit, r = LEFT_TOLERANCE.get(model.dtype, 1e-2), unit(direction.unit.double())
    for name, x in model.cache(["Hello there, how are you?"], write_sites(model.n_layers)).items():
        wide = x.double().cpu()
        left = float(((wide @ r.cpu()).abs() / wide.norm(dim=-1).clamp_min(1e-30)).max())
        if not left <= limit:  # also true for NaN
            raise ModelError(
                f"{model.name}: with edited weights {name} still has {left:.2g} of its length along the direction "
                f"(limit {limit:g}): some weight that writes there is not among those known, or an active hook writes "
                "there; use model.hooks(Ablate(direction)) instead"
            )
