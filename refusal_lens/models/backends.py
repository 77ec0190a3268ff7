"""Which backend a TransformerLens model needs, and the lock of the model, whoever wraps it."""

import threading
from typing import Any
from weakref import WeakKeyDictionary

from ..errors import ModelError
from .backend import Backend
from .bridge import BridgeBackend
from .hooked_transformer import HookedTransformerBackend

_LOCKS: WeakKeyDictionary[Any, threading.RLock] = WeakKeyDictionary()


def lock_of(tl: Any) -> Any:
    """One lock per TransformerLens model, however many wrappers there are around it: hooks live on its modules."""
    return _LOCKS.setdefault(tl, threading.RLock())


def backend_of(tl: Any) -> Backend:
    """Wrap a TransformerLens model by its kind; a ``ModelError`` for anything else."""
    kinds = {"TransformerBridge": BridgeBackend, "HookedTransformer": HookedTransformerBackend}
    for cls in type(tl).__mro__:
        if cls.__name__ in kinds:
            return kinds[cls.__name__](tl)
    raise ModelError(
        f"{type(tl).__name__} is neither a TransformerBridge nor a HookedTransformer; use load_model for a "
        "Hugging Face id, a folder or a .gguf file"
    )
