"""How much this process has run, whichever models it holds: for what a study's stages took."""

from collections import Counter
from typing import Any

# Forward passes, those that end early included, and the positions in them, padding included.
FORWARDS: Counter[str] = Counter(passes=0, tokens=0)


def count_pass(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of a whole model: one pass, of token ids however they are called."""
    ids = kwargs.get("input_ids", kwargs.get("tokens", args[0] if args else None))
    FORWARDS.update(passes=1, tokens=0 if ids is None else ids.shape[0] * ids.shape[1])
