"""Engines: map work over items that are cut the same way whatever runs them.

The caller cuts a stage into items of fixed size. An engine only decides where each item runs, never how it is cut, so
every matrix multiplication has the same shape on every engine and results agree bit for bit (on equal machines).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from ..models.model import HookedChatModel
from ..records.store import Store

Value = Tensor | dict[str, Tensor] | list[str]


@runtime_checkable
class Work(Protocol):
    """One kind of work: a picklable value, the same for all items."""

    def prepare(self, model: HookedChatModel) -> Any:
        """Make the state that all items share (e.g. baseline activations), once on each worker."""

    def run(self, model: HookedChatModel, state: Any, item: Any) -> Value:
        """Compute the result of one item: a tensor, named tensors or texts."""


class Engine(ABC):
    """Runs work over items; work that is not mapped runs on ``model``."""

    def __init__(self, model: HookedChatModel):
        self.model = model
        self.keep(Store(None), "")

    def keep(self, store: Store, key: str) -> None:
        """Keep results of items in ``store`` from now on, and reuse those of an interrupted run.

        The key is that of a stage, which makes the same maps in the same order every time.
        """
        self._store, self._key, self._maps = store, key, 0

    def each(
        self, label: str, work: Work, items: Sequence[Any], on_item: Callable[[int], None] | None = None
    ) -> Iterator[Value]:
        """Yield results in the order of ``items``, each as soon as it and those before it are ready.

        Args:
            label: part of the names of kept results.
            items: picklable values.
            on_item: called with an item's index when it is done (for progress).
        """
        self._maps += 1
        label = f"{self._maps:03d}-{label}"
        ahead: dict[int, Value] = {}
        following = 0
        for index, value in self._results(label, work, items):
            ahead[index] = value
            if on_item:
                on_item(index)
            while following in ahead:
                yield ahead.pop(following)
                following += 1

    def map(
        self, label: str, work: Work, items: Sequence[Any], on_item: Callable[[int], None] | None = None
    ) -> list[Value]:
        """All results of ``each``."""
        return list(self.each(label, work, items, on_item))

    def _results(self, label: str, work: Work, items: Sequence[Any]) -> Iterator[tuple[int, Value]]:
        """Kept ones first, then the others as they come."""
        left: dict[int, Any] = {}
        for index, item in enumerate(items):
            known = self._store.get(f"{label}-{index:05d}", self._key)
            if known is None:
                left[index] = item
            else:
                yield index, known
        if left:
            for index, value in self._run(work, left):
                yield index, self._store.put(f"{label}-{index:05d}", value, self._key)

    @abstractmethod
    def _run(self, work: Work, items: dict[int, Any]) -> Iterator[tuple[int, Value]]:
        """(index, result) of every item, in any order."""

    @property
    def width(self) -> int:
        """How many items run at a time."""
        return 1

    def close(self) -> None:  # noqa: B027  (most engines hold nothing)
        """Release what the engine holds."""
