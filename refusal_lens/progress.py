"""How long work tells how far it is: a stage's name and total in, a function that takes steps out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Advance = Callable[[int], None]
Progress = Callable[[str, int], AbstractContextManager[Advance]]


@contextmanager
def silent(name: str, total: int) -> Iterator[Advance]:
    """The default progress: none."""
    yield lambda n: None
