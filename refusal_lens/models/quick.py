"""Components of a bridge step aside during a pass where nothing is hooked.

A component calls the module that it wraps, between hook points. On a small model that costs as much as the module
itself, and a GPU waits meanwhile. So where no hook is on a component, the module takes its place: the same operations,
without the calls around them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from types import MethodType
from typing import Any

import torch
from torch.nn import Embedding, Module
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.generalized_components.block import BlockBridge
from transformer_lens.model_bridge.generalized_components.embedding import EmbeddingBridge
from transformer_lens.model_bridge.generalized_components.gated_mlp import GatedMLPBridge
from transformer_lens.model_bridge.generalized_components.linear import LinearBridge
from transformer_lens.model_bridge.generalized_components.normalization import NormalizationBridge
from transformer_lens.model_bridge.generalized_components.position_embeddings_attention import (
    PositionEmbeddingsAttentionBridge,
)
from transformer_lens.model_bridge.generalized_components.rotary_embedding import RotaryEmbeddingBridge

# Their forward is the wrapped module's, between hook points. Attention's is TransformerLens's own.
FORWARDS = {
    kind.forward
    for kind in (BlockBridge, EmbeddingBridge, GatedMLPBridge, LinearBridge, NormalizationBridge, RotaryEmbeddingBridge)
}
# With these, blocks note what their norms see, and attention gives what no hook point shows otherwise.
FORKS = ("use_split_qkv_input", "use_attn_in", "use_hook_mlp_in", "use_attn_result")


@contextmanager
def instead(forwards: dict[Any, Callable]) -> Iterator[None]:
    """Modules with other functions in the place of their ``forward``."""
    try:
        for module, forward in forwards.items():
            module.__dict__["forward"] = forward  # not setattr, which a bridge's parts hand on to what they wrap
        yield
    finally:
        for module in forwards:
            module.__dict__.pop("forward", None)


@dataclass(frozen=True)
class _Place:
    """Where a module that runs holds a component.

    Attributes:
        holder: children of that module, by name.
        hooks: on the component and at its hook points.
        block: the block it is in, whose own hooks on it note nothing unless one of ``FORKS`` is set.
    """

    holder: dict[str, Module | None]
    name: str
    component: GeneralizedComponent
    hooks: tuple[dict[int, Any], ...]
    block: BlockBridge | None

    def is_free(self) -> bool:
        """Whether nothing sees the component."""
        before = self.component._forward_pre_hooks
        if any(self.hooks) or "forward" in self.component.__dict__:
            return False
        own = [handle.id for handle in getattr(self.block, "_capture_hook_handles", ())] if before else ()
        return all(key in own for key in before)


class StepAside:
    """The components of a bridge that can give their places to the modules they wrap.

    Args:
        tl: the bridge.
        dtype: of its weights; norms that compute in another one stay, since they convert.

    Attributes:
        same_attention: whether the checkpoint's own attention gives the same logits, bit for bit.
    """

    def __init__(self, tl: Any, dtype: torch.dtype):
        for block in tl.blocks:  # as each does in its first pass: what it sees of its parts keeps these in place
            getattr(block, "_maybe_wire_capture_hooks", int)()
        self.tl, self.places = tl, list(_places(tl, dtype))
        self.same_attention = False  # nobody has compared yet
        parts = [part for block in tl.blocks for part in block.children()]
        self.attentions = [
            (part, tuple(_hooks_inside(part)))
            for part in parts
            if type(part).forward is PositionEmbeddingsAttentionBridge.forward
        ]

    @contextmanager
    def during(self) -> Iterator[None]:
        """A pass: components without hooks are out of the way, and back afterwards."""
        cfg = self.tl.cfg
        if getattr(self.tl, "compatibility_mode", False) or any(getattr(cfg, flag, False) for flag in FORKS):
            yield
            return
        forwards: dict[Any, Any] = {}
        try:
            for place in self.places:
                own, free = place.component, place.is_free()
                if not isinstance(own, BlockBridge):
                    place.holder[place.name] = own.original_component if free else own
                elif free:  # TransformerLens's list of blocks is the one that runs, so it keeps them
                    forwards[own] = own.original_component
            for attention, hooks in self.attentions if self.same_attention else ():
                if not any(hooks) and "forward" not in attention.__dict__:
                    forwards[attention] = MethodType(_own_attention, attention)
            with instead(forwards):
                yield
        finally:
            for place in self.places:
                place.holder[place.name] = place.component


def _places(tl: Any, dtype: torch.dtype) -> Iterator[_Place]:
    blocks = {id(part): block for block in tl.blocks for part in block.children()}
    for holder in tl.original_model.modules():
        for name, part in holder._modules.items():
            if isinstance(part, GeneralizedComponent) and _can_go(part, dtype) and _only_calls(holder, part):
                yield _Place(holder._modules, name, part, tuple(_hooks(part)), blocks.get(id(part)))


def _only_calls(holder: Module, part: GeneralizedComponent) -> bool:
    """Whether a module does nothing with its part but call it: the checkpoint's own, and attention with its norms."""
    if isinstance(holder, GeneralizedComponent):
        return isinstance(part, NormalizationBridge) and isinstance(holder, PositionEmbeddingsAttentionBridge)
    return True


def _can_go(part: Any, dtype: torch.dtype) -> bool:
    """Whether a component without hooks gives what the module that it wraps gives."""
    inner = part.original_component
    if inner is None or type(part).forward not in FORWARDS:
        return False
    if isinstance(part, EmbeddingBridge):
        return isinstance(inner, Embedding)
    if isinstance(part, NormalizationBridge):
        return part.use_native_layernorm_autograd and all(p.dtype == dtype for p in inner.parameters())
    if isinstance(part, BlockBridge):  # it drops keywords that the module does not know
        return any(p.kind is p.VAR_KEYWORD for p in signature(inner.forward).parameters.values())
    return True


def _hooks(part: Any) -> Iterator[dict[int, Any]]:
    """What may hold hooks that see a component; a block's first norm too, for which the block puts something away."""
    yield from (part._forward_hooks, part._backward_hooks, part._backward_pre_hooks)
    for point in part.children():
        if isinstance(point, HookPoint):
            yield from (point._forward_hooks, point._forward_pre_hooks, point._backward_hooks)
    if isinstance(part, BlockBridge) and (norm := part._modules.get("ln1")) is not None:
        yield norm._forward_hooks
        yield from _hooks(norm)


def _hooks_inside(attention: Any) -> Iterator[dict[int, Any]]:
    """What may hold hooks between attention's input and its output."""
    for part in attention.modules():
        if part not in (attention, attention.hook_in, attention.hook_out):
            yield from (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks)


def _own_attention(attention: Any, *args: Any, **kwargs: Any) -> tuple:
    """The checkpoint's own attention between the component's first and last hook point."""
    if args:
        args = (attention.hook_in(args[0]), *args[1:])
    else:
        kwargs["hidden_states"] = attention.hook_in(kwargs["hidden_states"])
    out, *rest = attention.original_component(*args, **kwargs)
    return (attention.hook_out(out), *rest)
