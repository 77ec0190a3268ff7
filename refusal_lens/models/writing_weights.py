"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import ModelError
from .backend import Backend

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


def writing_weights(backend: Backend, name: str) -> list[WritingWeight]:
    """Every parameter that writes to the residual stream.

    Raises:
        ModelError: a layer whose output weights are not found, or weights that are quantized or offloaded.
    """
    tl = backend.tl
    hooked = backend.kind == "HookedTransformer"
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
                    f"{name}: the output weights of {where} ({type(module).__name__}) were not found; use "
                    "model.hooks(Ablate(direction)) instead"
                )
            found += own
    for weight in found:
        if not weight.parameter.is_floating_point():
            raise ModelError(
                f"{name}: {weight.where} is quantized ({weight.parameter.dtype}), so it can't be edited; load "
                "the model in bfloat16, or use model.hooks(Ablate(direction))"
            )
        if weight.parameter.is_meta:
            raise ModelError(
                f"{name}: {weight.where} is offloaded to disk or CPU; use model.hooks(Ablate(direction)), or "
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
