"""The commands as one program: their order in the help, their errors, and Ctrl-C."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Annotated, NoReturn

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
    from ..errors import RefusalLensError
    from ..models.allocator import keep_freed_memory

    keep_freed_memory()  # this process is the command's own
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # ours say what is going on
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    try:
        app()
    except KeyboardInterrupt:
        _stop()
    except SystemExit as end:  # typer turns Ctrl-C into exit code 130 without a word
        if end.code == INTERRUPTED:
            _stop()
        raise
    except (RefusalLensError, OSError) as error:
        message = _sentence(error)
        log.write({"event": "error", "kind": type(error).__name__, "message": message})
        if not log.on_terminal:
            error_console.print(f"refusal-lens: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(2) from None
    except Exception as error:  # a fault of ours: with its traceback
        log.write({"event": "error", "kind": type(error).__name__, "message": str(error)})
        raise


def _stop() -> NoReturn:
    """End after Ctrl-C; finished stages are on disk, and what is half written has another name."""
    error_console.print(STOPPED, markup=False, highlight=False, soft_wrap=True)
    raise SystemExit(INTERRUPTED) from None


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError):  # a folder that can't be written, a full disk
        return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    return str(error)
