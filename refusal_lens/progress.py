"""Progress of long work: a callable of a stage's name and total that gives a context whose value counts steps."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

Advance = Callable[[int], None]
Progress = Callable[[str, int], AbstractContextManager[Advance]]


@contextmanager
def silent(name: str, total: int) -> Iterator[Advance]:
    """The default progress: none."""
    yield lambda n: None


def together(*parts: Progress) -> Progress:
    """Several progresses as one."""

    @contextmanager
    def stage(name: str, total: int) -> Iterator[Advance]:
        with ExitStack() as stack:
            steps = [stack.enter_context(part(name, total)) for part in parts]

            def advance(n: int) -> None:
                for step in steps:
                    step(n)

            yield advance

    return stage


def as_events(write: Callable[[dict[str, Any]], None], every: float = 5.0) -> Progress:
    """Progress as events: "stage" at the start, "progress" at most once every ``every`` seconds, then "stage_end" or
    "stage_failed".

    Args:
        write: takes an event: ``event``, ``stage``, ``total`` (0 where it is not known), ``done``, ``seconds``,
            ``remaining_seconds``.
        every: seconds between two "progress" events of a stage.
    """

    @contextmanager
    def stage(name: str, total: int) -> Iterator[Advance]:
        start = last = time.monotonic()
        done = 0
        write({"event": "stage", "stage": name, "total": total})

        def end(event: str) -> None:
            write({"event": event, "stage": name, "seconds": round(time.monotonic() - start, 3)})

        def advance(n: int) -> None:
            nonlocal done, last
            done += n
            now = time.monotonic()
            if now - last < every:
                return
            last = now
            left = (now - start) * max(total - done, 0) / done if total and done else None
            event = {"event": "progress", "stage": name, "done": done, "total": total, "seconds": round(now - start, 3)}
            write({**event, "remaining_seconds": None if left is None else round(left, 1)})

        try:
            yield advance
        except BaseException:
            end("stage_failed")
            raise
        end("stage_end")

    return stage


@contextmanager
def automatic(name: str, total: int) -> Iterator[Advance]:
    """Show a bar in a notebook, nothing elsewhere: the default of everything that takes long."""
    python = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if python is None or "IPKernelApp" not in python.config:
        yield lambda n: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total or None, desc=name, leave=False) as bar:
        yield bar.update
