"""Which backend a TransformerLens model needs."""

from __future__ import annotations

from typing import Any

from ..errors import ModelError
from .backend import Backend
from .bridge import BridgeBackend
from .hooked_transformer import HookedTransformerBackend


def backend_of(tl: Any) -> Backend:
    """Wrap a TransformerLens model by its kind.

    Raises:
        ModelError: for anything else.
    """
    kinds = {"TransformerBridge": BridgeBackend, "HookedTransformer": HookedTransformerBackend}
    for cls in type(tl).__mro__:
        if cls.__name__ in kinds:
            return kinds[cls.__name__](tl)
    raise ModelError(
        f"a {type(tl).__name__} is neither a TransformerBridge nor a HookedTransformer; use load_model for a "
        "Hugging Face id, a folder or a .gguf file"
    )
