"""What the commands share: the two consoles and the progress bars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from ..progress import silent

error_console = Console(stderr=True)
console = Console()


@contextmanager
def bars(quiet: bool) -> Iterator[Any]:
    """Progress bars with the time left, as a ``Progress``; nothing when quiet."""
    if quiet:
        yield silent
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=error_console) as progress:

        @contextmanager
        def stage(name: str, total: int) -> Iterator[Any]:
            task = progress.add_task(name, total=total or None)
            yield lambda n: progress.advance(task, n)
            progress.update(task, total=total or 1, completed=total or 1)

        yield stage
