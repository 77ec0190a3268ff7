"""The command line: the order of the commands in its help, their errors, and Ctrl-C."""

import errno
import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from .ablations import ablations
from .certify import certify
from .evaluate import evaluate
from .explore import explore
from .hijack import hijack
from .open_report import open_report
from .run import run
from .sweep import sweep
from .terminal import LogJson, error_console, log, say

INTERRUPTED = 130  # 128 + SIGINT
STOPPED = "refusal-lens: stopped; run the same command again to resume"

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def _group() -> None:
    """Find, test and dissect the refusal direction of a chat model.

    Examples:

      refusal-lens run                              the embedded model, in a minute or two

      refusal-lens open                             its report, in the browser

      refusal-lens COMMAND --help                   a command's options, with examples

      REFUSAL_LENS_CACHE=off refusal-lens run x.gguf    without keeping its dequantized weights for the next time

      refusal-lens --install-completion             tab completion, for bash, zsh, fish or PowerShell
    """


app.command()(run)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A result folder of `refusal-lens run`.")],
    log_json: LogJson = None,
) -> None:
    """Render the report of FOLDER again, with the results of `evaluate` and `hijack`; no model is needed.

    Examples:

      refusal-lens report runs/latest
    """
    from ..study.folder import Study

    say("report", Study(folder).report())


app.command("open")(open_report)
app.command()(certify)
app.command()(evaluate)
app.command()(sweep)
app.command()(hijack)
app.command()(ablations)
app.command()(explore)


def main() -> None:
    """Run the command line: an error the user can fix is one sentence on stderr and exit code 2."""
    from ..models.allocator import keep_freed_memory

    keep_freed_memory()  # this process is the command's own
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # ours say what is going on
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    stopped: list[int] = []
    try:
        with _noted(stopped):
            app()
    except BaseException as error:
        # typer turns Ctrl-C into exit code 130 without a word, and a library that is being imported into any error.
        if stopped or isinstance(error, KeyboardInterrupt) or getattr(error, "code", None) == INTERRUPTED:
            # Finished stages are on disk, and what is half written has another name.
            error_console.print(STOPPED, markup=False, highlight=False, soft_wrap=True)
            raise SystemExit(INTERRUPTED) from None
        if isinstance(error, Exception):
            _explain(error)
        raise


@contextmanager
def _noted(stopped: list[int]) -> Iterator[None]:
    """Note each Ctrl-C, and raise it again every 5 s: an import that is under way may swallow it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGALRM") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}

    def interrupt(number: int, frame: Any) -> None:
        stopped.append(number)
        if hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, interrupt)
            signal.setitimer(signal.ITIMER_REAL, 5)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if stopped and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _explain(error: Exception) -> None:
    """One sentence and exit code 2 for what the user can fix; anything else keeps its traceback."""
    from ..errors import RefusalLensError

    message = str(error)
    if isinstance(error, OSError):  # a folder that can't be written, a full disk
        message = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
        message += "; make room" if error.errno == errno.ENOSPC else "; give a path that can be used (--out)"
    log.write({"event": "error", "kind": type(error).__name__, "message": message})
    if isinstance(error, (RefusalLensError, OSError)):
        if not log.on_terminal:
            error_console.print(f"refusal-lens: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(2) from None
