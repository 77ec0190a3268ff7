"""The engine of one process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .base import Engine, Value, Work


class LocalEngine(Engine):
    """Items one after another on the loaded model."""

    _prepared: tuple[Work, Any] | None = None

    def _run(self, work: Work, items: dict[int, Any]) -> Iterator[tuple[int, Value]]:
        # The last work's state is kept: a stage maps one work several times.
        if self._prepared is None or self._prepared[0] is not work:
            self._prepared = None  # free the old state before the new one is made
            self._prepared = (work, work.prepare(self.model))
        for index, item in items.items():
            yield index, work.run(self.model, self._prepared[1], item)
