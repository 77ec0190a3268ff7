"""How much this process has run, whichever models it holds: for the times of a study's stages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass
class Forwards:
    """Forward passes, those that end early included, and the positions that went into them, padding included."""

    passes: int = 0
    tokens: int = 0

    def add(self, passes: int, tokens: int) -> None:
        """Count some more."""
        self.passes += passes
        self.tokens += tokens

    def since(self, before: Forwards) -> Forwards:
        """What came after ``before``."""
        return Forwards(self.passes - before.passes, self.tokens - before.tokens)

    def copy(self) -> Forwards:
        """The numbers as they are now."""
        return replace(self)


FORWARDS = Forwards()


def count_pass(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of a whole model: one pass, of token ids however they are called."""
    ids = kwargs.get("input_ids", kwargs.get("tokens", args[0] if args else None))
    FORWARDS.add(1, 0 if ids is None else ids.shape[0] * ids.shape[1])
