"""The commands as one program: their order in the help, their errors, and Ctrl-C."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from .certify import certify
from .evaluate import evaluate
from .hijack import hijack
from .open_report import open_report
from .run import run
from .sweep import sweep
from .terminal import LogJson, error_console, log, say

INTERRUPTED = 130  # 128 + SIGINT
STOPPED = "refusal-lens: stopped; run the same command again to go on"

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def _group() -> None:
    """Find, test and dissect the refusal direction of a chat model.

    Examples:

      refusal-lens run                              the embedded model, in a minute or two

      refusal-lens open                             its report, in the browser

      refusal-lens COMMAND --help                   what a command takes, with examples

      refusal-lens --install-completion             commands and options by Tab, in bash, zsh, fish or PowerShell
    """


app.command()(run)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A result folder of `refusal-lens run`.")],
    log_json: LogJson = None,
) -> None:
    """Render the report of FOLDER again, with what `evaluate` and `hijack` added to it; no model is needed.

    Examples:

      refusal-lens report runs/latest
    """
    from ..study.folder import Study

    say("report", Study.load(folder).report())


app.command("open")(open_report)
app.command()(certify)
app.command()(evaluate)
app.command()(sweep)
app.command()(hijack)


def main() -> None:
    """Run the command line: an error the user can fix is one sentence on stderr and exit code 2."""
    from ..models.allocator import keep_freed_memory

    keep_freed_memory()  # this process is the command's own
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # ours say what is going on
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    stopped = _listen()
    try:
        app()
    except BaseException as error:
        # typer turns Ctrl-C into exit code 130 without a word, and a library that is being imported into any error.
        if stopped or isinstance(error, KeyboardInterrupt) or getattr(error, "code", None) == INTERRUPTED:
            _stop()
        _explain(error)
        raise


def _listen() -> list[int]:
    """Note each Ctrl-C in a list, and raise it again every 5 s: an import that is under way may swallow it."""
    stopped: list[int] = []

    def interrupt(number: int, frame: Any) -> None:
        stopped.append(number)
        if hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, interrupt)
            signal.setitimer(signal.ITIMER_REAL, 5)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, interrupt)
    return stopped


def _explain(error: BaseException) -> None:
    """One sentence and exit code 2 for what the user can fix; anything else keeps its traceback."""
    from ..errors import RefusalLensError

    if isinstance(error, (RefusalLensError, OSError)):
        message = _sentence(error)
        log.write({"event": "error", "kind": type(error).__name__, "message": message})
        if not log.on_terminal:
            error_console.print(f"refusal-lens: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(2) from None
    if isinstance(error, Exception):  # a fault of ours: with its traceback
        log.write({"event": "error", "kind": type(error).__name__, "message": str(error)})


def _stop() -> NoReturn:
    """End after Ctrl-C; finished stages are on disk, and what is half written has another name."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)
    error_console.print(STOPPED, markup=False, highlight=False, soft_wrap=True)
    raise SystemExit(INTERRUPTED) from None


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError):  # a folder that can't be written, a full disk
        return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    return str(error)
