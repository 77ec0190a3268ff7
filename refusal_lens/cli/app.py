"""The command line: ``refusal-lens run | open | report | hijack | evaluate | certify``."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import pydantic
import typer
from rich.table import Table

from .certify import certify
from .evaluate import evaluate
from .hijack import hijack
from .open_report import open_report
from .sweep import sweep
from .terminal import LogJson, Quiet, bars, console, error_console, log

INTERRUPTED = 130  # 128 + SIGINT
STOPPED = "refusal-lens: stopped; run the same command again to go on"

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _group() -> None:
    """The refusal direction of a chat model: found, tested, taken apart.

    Examples:

      refusal-lens run                              the embedded model, in a minute or two

      refusal-lens open                             its report, in the browser

      refusal-lens COMMAND --help                   what a command takes, with examples

      refusal-lens --install-completion             commands and options by Tab, in bash, zsh, fish or PowerShell
    """


@app.command()
def run(
    model: Annotated[
        str, typer.Argument(help="Hub id, folder, .gguf file, or 'organism' (the embedded model).")
    ] = "organism",
    out: Annotated[Path, typer.Option(help="Result folder.")] = Path("runs/latest"),
    harmful: Annotated[
        str | None, typer.Option(help="Harmful prompts: file, stem of _train/_val/_test files, preset or data set id.")
    ] = None,
    harmless: Annotated[str | None, typer.Option(help="Harmless prompts, likewise.")] = None,
    n_train: Annotated[int, typer.Option(min=1, help="Training prompts of each kind.")] = 128,
    n_val: Annotated[int, typer.Option(min=1, help="Validation prompts of each kind.")] = 32,
    n_test: Annotated[int, typer.Option(min=1, help="Test prompts of each kind.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the splits and of the random directions.")] = 0,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 ... (default: what suits model and device).")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda ... (default: a GPU if there is one).")] = None,
    device_map: Annotated[str | None, typer.Option(help="'auto' spreads the model over several GPUs.")] = None,
    system: Annotated[
        str | None, typer.Option(help="System prompt (default: none of our own, as in the paper).")
    ] = None,
    coeff: Annotated[float, typer.Option(help="Multiple of r that addition adds.")] = 1.0,
    max_kl: Annotated[float, typer.Option(help="Selection: highest KL.")] = 0.1,
    min_induce: Annotated[float, typer.Option(help="Selection: lowest induce score.")] = 0.0,
    layer_cutoff: Annotated[float, typer.Option(help="Selection: share of the layers that is searched.")] = 0.8,
    relax: Annotated[bool, typer.Option(help="Take the nearest candidate when none passes, and say so.")] = False,
    full_grid: Annotated[
        bool | None,
        typer.Option(help="Compute every score of every candidate, for the plots (default: for the embedded model)."),
    ] = None,
    refusal_token: Annotated[
        list[str] | None, typer.Option(help="A refusal token, as id or text; may be repeated.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length limit of replies.")] = 64,
    engine: Annotated[str, typer.Option(help="local, or ray: spread the work over a Ray cluster.")] = "local",
    address: Annotated[
        str | None, typer.Option(help="Of a running Ray cluster: auto or HOST:PORT (default: Ray on this machine).")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Ray workers, each with a model (default: what fits).")
    ] = None,
    attribution: Annotated[bool, typer.Option(help="Look inside: heads, logits, tokens.")] = True,
    stability: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Draw the training prompts again so many times and choose again "
            "(default: 10 for the embedded model, 0 for others).",
        ),
    ] = None,
    suffixes: Annotated[
        str | None,
        typer.Option(help="Suffix file to look into (default: the embedded model's own, for it alone), or 'none'."),
    ] = None,
    quiet: Quiet = False,
    log_json: LogJson = None,
) -> None:
    """Find and test the refusal direction of MODEL; resumes where it stopped.

    Examples:

      refusal-lens run

      refusal-lens run Qwen/Qwen2.5-0.5B-Instruct --harmful advbench --harmless alpaca --out runs/qwen

      refusal-lens run model.gguf --harmful data/harmful --harmless data/harmless --relax

      refusal-lens run Qwen/Qwen2.5-7B-Instruct --device-map auto --quiet --log-json job.jsonl     (a batch job)
    """
    from ..engines.choice import named_engine
    from ..study.config import StudyConfig
    from ..study.pipeline import run_study

    embedded = model == "organism"  # small enough for everything
    if suffixes is None and embedded:
        suffixes = "organism"
    config = StudyConfig(
        model=model,
        harmful=harmful,
        harmless=harmless,
        sizes=(n_train, n_val, n_test),
        seed=seed,
        dtype=dtype,
        device=device,
        device_map=device_map,
        system=system,
        coeff=coeff,
        max_kl=max_kl,
        min_induce=min_induce,
        layer_cutoff=layer_cutoff,
        relax=relax,
        full_grid=embedded if full_grid is None else full_grid,
        refusal_tokens=tuple(refusal_token or ()),
        attribution=attribution,
        stability=(10 if embedded else 0) if stability is None else stability,
        suffixes=None if suffixes == "none" else suffixes,
        max_new_tokens=max_new_tokens,
    )
    with bars(quiet) as progress:
        study = run_study(config, out, progress, engine=named_engine(engine, config, address, workers))
    log.write({"event": "result", "folder": str(study.folder.resolve()), "summary": study.summary})
    if not quiet:
        console.print(findings(study.summary))
    console.print(f"report: {(study.folder / 'report.html').resolve()}", soft_wrap=True)
    if not quiet:
        console.print(f"open it with: refusal-lens open {study.folder}", soft_wrap=True, markup=False, highlight=False)


def findings(summary: dict[str, Any]) -> Table:
    """The short table at the end of a run: rates with intervals, and whether they stand apart from the placebo's."""
    from ..stats import Rate
    from ..study.summary import apart

    direction, scores = summary["direction"], summary["scores"]
    table = Table(title=f"{summary['model']}: direction at ({direction['pos']}, {direction['layer']})")
    for column in ("prompts", "condition", "refused", "95% interval", "n"):
        table.add_column(column)
    for prompts, rates in summary["refusal"].items():
        for condition, r in rates.items():
            interval = f"{r['low']:.0%} to {r['high']:.0%}"
            table.add_row(prompts, condition.replace("_", " "), f"{r['rate']:.0%}", interval, str(r["n"]))
    caption = f"bypass {scores['bypass']:.2f}, induce {scores['induce']:.2f}, KL {scores['kl']:.3f}"
    rates = {name: {c: Rate(**r) for c, r in found.items()} for name, found in summary["refusal"].items()}
    claims = (("necessary", "harmful", "ablation", -1), ("sufficient", "harmless", "addition", +1))
    shown = [
        f"{word}: {'shown' if apart(rates[prompts], condition, sign) else 'not shown'}"
        for word, prompts, condition, sign in claims
    ]
    caption += "\n" + ", ".join(shown) + " (95% intervals apart from the random direction's)"
    table.caption = caption + (f"\nrelaxed: {direction['relaxed']}" if direction["relaxed"] else "")
    return table


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

    console.print(f"report: {Study.load(folder).report().resolve()}", soft_wrap=True)


app.command("open")(open_report)
app.command()(certify)
app.command()(evaluate)
app.command()(sweep)
app.command()(hijack)


def main() -> None:
    """Entry point: what the user can put right is one sentence on stderr and exit code 2."""
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
    except (RefusalLensError, OSError, pydantic.ValidationError) as error:
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
    if isinstance(error, pydantic.ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    if isinstance(error, OSError):  # a folder that can't be written, a full disk
        return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    return str(error)
