"""Shared by the commands: consoles, progress bars, quiet runs, and the log of a batch job."""

import json
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from ..progress import as_events, silent, together
from ..records.files import plain_json

LATEST = Path("runs/latest")
error_console = Console(stderr=True)
console = Console()


def say(what: str, value: object) -> None:
    """Print one line without markup, since paths and prompts may contain what looks like it."""
    shown = value.resolve() if isinstance(value, Path) else value
    console.print(f"{what}: {shown}", soft_wrap=True, markup=False, highlight=False)


def show_table(columns: Iterable[Column | str], rows: Iterable[Iterable[str]], title: str) -> None:
    """Print a table of texts without markup."""
    table = Table(*columns, title=escape(title))
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def load_like(study: Any, progress: Any, model: str | None, dtype: str | None, device: str | None) -> Any:
    """Load a study's model, or ``model``, with the study's own settings where none are given."""
    from ..models.load import load_model

    with progress("load the model", 0):
        return load_model(model or study.provenance["settings"]["model"], **loading_of(study, dtype, device))


def loading_of(study: Any, dtype: str | None, device: str | None) -> dict[str, Any]:
    """How to load a study's model: as the study did, but for what is given."""
    settings, chat = study.provenance["settings"], study.provenance["model"].get("chat")
    given = {"dtype": dtype or settings.get("dtype"), "device": device or settings.get("device")}
    return {"device_map": settings.get("device_map"), **(chat or {"system": settings.get("system")}), **given}


class Log:
    """JSON lines about a run, for batch jobs: one object per line, each written at once. Closed until ``open``."""

    def __init__(self) -> None:
        self._file: IO[str] | None = None

    @property
    def active(self) -> bool:
        """Whether it is open."""
        return self._file is not None

    @property
    def on_terminal(self) -> bool:
        """Whether it goes to stderr, where progress bars would garble it."""
        return self._file is sys.stderr

    def open(self, target: str | None) -> str | None:
        """Open the log: "-" is stderr, anything else a file to append to; None changes nothing."""
        if target is not None:
            if target != "-":
                Path(target).parent.mkdir(parents=True, exist_ok=True)
            self._file = sys.stderr if target == "-" else Path(target).open("a", encoding="utf-8")  # noqa: SIM115
            self.write({"event": "start", "arguments": sys.argv[1:]})
        return target

    def write(self, event: dict[str, Any]) -> None:
        """One line: the time in UTC and the event."""
        if self._file is not None:
            line = {"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), **plain_json(event)}
            self._file.write(json.dumps(line, ensure_ascii=False, default=str, allow_nan=False) + "\n")
            self._file.flush()


log = Log()


def _open_log(context: typer.Context, value: str | None) -> str | None:
    return value if context.resilient_parsing else log.open(value)  # completing a line opens nothing


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars and no table; results and errors only.")]
LogJson = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        callback=_open_log,
        is_eager=True,
        help="Append events as JSON lines to FILE, or to stderr for '-' (then without progress bars).",
    ),
]


def _line(event: dict[str, Any]) -> None:
    """An event of a stage as a line on stderr, with the time of day."""
    if event["event"] == "stage":
        text = f"begins ({event['total']} steps)" if event["total"] else "begins"
    else:
        text = f"{'done in' if event['event'] == 'stage_end' else 'failed after'} {event['seconds']:.1f} s"
    line = f"{datetime.now():%H:%M:%S} {event['stage']}: {text}"
    error_console.print(line, soft_wrap=True, markup=False, highlight=False)


@contextmanager
def bars(quiet: bool) -> Iterator[Any]:
    """Progress bars with the time left, as a ``Progress``; none when quiet. If stderr is not a terminal (a batch job's
    log), one line when a stage begins and one when it ends. The JSON log gets every stage."""
    events = as_events(log.write) if log.active else silent
    if quiet or log.on_terminal:
        yield events
        return
    if not error_console.is_terminal:
        yield together(as_events(_line, every=math.inf), events)
        return
    from rich import progress as rich

    steps = (rich.SpinnerColumn(), rich.TextColumn("{task.description}"), rich.BarColumn(), rich.MofNCompleteColumn())
    times = (rich.TimeElapsedColumn(), rich.TextColumn("left"), rich.TimeRemainingColumn())
    with rich.Progress(*steps, *times, console=error_console) as progress:

        @contextmanager
        def stage(name: str, total: int) -> Iterator[Any]:
            task = progress.add_task(name, total=total or None)
            yield lambda n: progress.advance(task, n)
            progress.update(task, total=total or 1, completed=total or 1)

        yield together(stage, events)
