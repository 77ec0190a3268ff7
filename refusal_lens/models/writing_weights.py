"""Parameters that write to the residual stream, for weight edits."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import ModelError


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


def check_editable(weights: Iterable[WritingWeight], name: str) -> None:
    """Refuse quantized or offloaded weights with a ``ModelError`` that names the first one of the model ``name``."""
    for weight in weights:
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


def not_found(name: str, where: str, module: nn.Module) -> ModelError:
    """The error for a part of a layer whose output weights are not known."""
    return ModelError(
        f"{name}: the output weights of {where} ({type(module).__name__}) were not found; use "
        "model.hooks(Ablate(direction)) instead"
    )


def core(module: Any) -> nn.Module:
    """The Hugging Face module inside a bridge component; any other module itself."""
    while (inner := module._modules.get("_original_component")) is not None:
        module = inner
    return module


def named(where: str, module: Any, names: Sequence[str], axis: int) -> list[WritingWeight]:
    """Those of the parameters ``names`` that the module has."""
    inner = core(module)
    return [WritingWeight(f"{where}.{n}", inner, n, axis) for n in names if inner._parameters.get(n) is not None]


def linear(where: str, module: Any) -> list[WritingWeight]:
    """Weight and bias of a Linear or Conv1D."""
    axis = -1 if type(core(module)).__name__ == "Conv1D" else 0
    return named(where, module, ("weight",), axis) + named(where, module, ("bias",), -1)
