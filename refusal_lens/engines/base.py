"""Engines: map work over items that are cut the same way whatever runs them.

The caller cuts a stage into items of fixed size. An engine only decides where each item runs, never how it is cut, so
every matrix multiplication has the same shape on every engine and results agree bit for bit (on equal machines).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from ..models.model import HookedChatModel
from ..records.base import Record
from ..records.store import Store

Value = Tensor | dict[str, Tensor] | list[str] | Record
OnItem = Callable[[int], None]


@runtime_checkable
class Work(Protocol):
    """One kind of work: a picklable value, the same for all items."""

    def prepare(self, model: HookedChatModel) -> Any:
        """Make the state that all items share (e.g. baseline activations), once on each worker."""

    def run(self, model: HookedChatModel, state: Any, item: Any) -> Value:
        """Compute the result of one item: a tensor, named tensors, texts or a record."""


@dataclass(frozen=True)
class Each:
    """A picklable function (model, item) -> result, as work whose items share nothing."""

    function: Callable[[HookedChatModel, Any], Value]

    def prepare(self, model: HookedChatModel) -> None:
        """Items share nothing."""

    def run(self, model: HookedChatModel, state: None, item: Any) -> Value:
        """The function's result."""
        return self.function(model, item)


class Engine(ABC):
    """Runs work over items; work that is not mapped runs on ``model``."""

    _prepared: tuple[Work, Any] | None = None

    def __init__(self, model: HookedChatModel):
        self.model = model
        self.keep(Store(None), "")

    def state(self, work: Work) -> Any:
        """What the items of ``work`` share, on the driver's model; kept until that of another work is made."""
        if self._prepared is None or self._prepared[0] is not work:
            self._prepared = None  # free the old state before the new one is made
            self._prepared = (work, work.prepare(self.model))
        return self._prepared[1]

    def keep(self, store: Store, key: str) -> None:
        """Keep results of items in ``store`` from now on, and reuse those of an interrupted run.

        The key is that of a stage, which makes the same maps in the same order every time.
        """
        self._store, self._key, self._maps = store, key, 0

    def each(
        self,
        label: str,
        work: Work | Callable[[HookedChatModel, Any], Value],
        items: Sequence[Any],
        on_item: OnItem | None = None,
        store: Store | None = None,
        names: Sequence[tuple[str, ...]] = (),
    ) -> Iterator[Any]:
        """Yield results in the order of ``items``, each as soon as it and those before it are ready.

        Args:
            label: part of the names of kept results.
            work: or a picklable function (model, item) -> result, where items share nothing.
            items: picklable values.
            on_item: called with an item's index when it is done (for progress).
            store: keeps the results in place of the stage's own store.
            names: of each result in ``store``, with the content keys that it is filed under; the last one must fit.
        """
        if store is None:
            self._maps += 1
            names = [(f"{self._maps:03d}-{label}-{i:05d}", self._key) for i in range(len(items))]
        work = work if isinstance(work, Work) else Each(work)
        ahead: dict[int, Value] = {}
        following = 0
        for index, value in self._results(work, items, store or self._store, names):
            ahead[index] = value
            if on_item:
                on_item(index)
            while following in ahead:
                yield ahead.pop(following)
                following += 1

    def map(self, *args: Any, **kwargs: Any) -> list[Any]:
        """All results of ``each``."""
        return list(self.each(*args, **kwargs))

    def _results(
        self, work: Work, items: Sequence[Any], store: Store, names: Sequence[tuple[str, ...]]
    ) -> Iterator[tuple[int, Value]]:
        """Kept ones first, then the others as they come."""
        left: dict[int, Any] = {}
        for index, (item, (name, *keys)) in enumerate(zip(items, names, strict=True)):
            known = store.get(name, keys[-1])
            if known is None:
                left[index] = item
            else:
                yield index, known
        if left:
            for index, value in self._run(work, left):
                name, *keys = names[index]
                yield index, store.put(name, value, *keys)

    @abstractmethod
    def _run(self, work: Work, items: dict[int, Any]) -> Iterator[tuple[int, Value]]:
        """(index, result) of every item, in any order."""

    @property
    def width(self) -> int:
        """How many items run at a time."""
        return 1

    def close(self) -> None:  # noqa: B027  (most engines hold nothing)
        """Release what the engine holds."""
