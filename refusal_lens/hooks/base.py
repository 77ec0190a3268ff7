"""What an intervention is, and what it may know of a model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

HookFn = Callable[..., Any]
Hooks = list[tuple[str, HookFn]]


@runtime_checkable
class Model(Protocol):
    """The part of ``HookedChatModel`` that interventions, readers and passes use."""

    name: str
    tl: Any
    chat: Any
    backend: Any
    running: Any
    packs: bool | None
    n_layers: int
    n_heads: int
    d_model: int
    d_head: int

    @property
    def device(self) -> Any:
        """Where token ids go."""

    @property
    def dtype(self) -> Any:
        """dtype of the weights."""

    def check_direction(self, direction: Any) -> None:
        """Refuse a direction of another model or basis."""

    def hooks(self, *interventions: Any) -> AbstractContextManager:
        """Interventions active inside."""
        ...

    def tokenize(self, prompts: Any, suffixes: Any = None) -> Any:
        """Tokens of chat-formatted prompts."""
        ...

    def logits(self, tokens: Any) -> Any:
        """Logits of a batch."""
        ...

    def cache(self, tokens: Any, names: Any) -> dict[str, Any]:
        """Activations at the named hook points."""
        ...

    def writing_weights(self) -> list[Any]:
        """Every parameter that writes to the residual stream."""
        ...


@runtime_checkable
class Intervention(Protocol):
    """Anything that says which functions to put at which hook points of a model."""

    def hooks(self, model: Model) -> Hooks:
        """(hook name, function) pairs; functions return new tensors and never edit in place."""
        ...


def write_sites(n_layers: int) -> list[str]:
    """The hook points of every write into the residual stream: what enters block 0, then each layer's
    attn_out and mlp_out (after post-norms where there are any). Sets with resid_mid are not exact on a bridge."""
    return ["blocks.0.hook_resid_pre"] + [
        f"blocks.{layer}.{site}" for layer in range(n_layers) for site in ("hook_attn_out", "hook_mlp_out")
    ]
