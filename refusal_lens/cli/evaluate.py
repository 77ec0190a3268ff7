"""``refusal-lens evaluate``: the table of conditions x prompt sets x judges."""

from pathlib import Path
from typing import Annotated

import typer

from ..behaviour.judges.naming import FORMS
from ..errors import PromptError
from ..records.labels import CONDITIONS
from .options import OfRunDevice, OfRunDtype
from .terminal import LogJson, Quiet, bars, error_console, load_like, log, say, show_table


def evaluate(
    run: Annotated[Path, typer.Argument(help="Result folder of `refusal-lens run`: its direction and prompts.")],
    prompts: Annotated[
        list[str] | None, typer.Argument(help="Prompt files, as FILE or NAME=FILE; by default the test prompts of RUN.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Hub id, folder or .gguf; by default the model of RUN.")] = None,
    condition: Annotated[
        list[str] | None, typer.Option(help=f"A condition (repeatable); by default all: {', '.join(CONDITIONS)}.")
    ] = None,
    judge: Annotated[list[str] | None, typer.Option(help=f"A judge (repeatable): {FORMS}.")] = None,
    out: Annotated[Path | None, typer.Option(help="Result folder; by default `evaluation` in RUN.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length limit of replies (the paper: 512).")] = 64,
    limit: Annotated[int, typer.Option(min=0, help="At most this many prompts of each set; 0 for all.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the random directions.")] = 0,
    allow_gap: Annotated[
        bool, typer.Option(help="Run 'orthogonalized' even on a model with post-norms (not equivalent to ablation).")
    ] = False,
    dtype: OfRunDtype = None,
    device: OfRunDevice = None,
    quiet: Quiet = False,
    log_json: LogJson = None,
) -> None:
    """Judge replies under every condition, with RUN's direction; resumes where it stopped.

    Examples:

      refusal-lens evaluate runs/latest

      refusal-lens evaluate runs/latest jbb=jailbreakbench.csv --condition baseline --condition ablation

      refusal-lens evaluate runs/latest --judge substrings --judge llama-guard-2:models/Meta-Llama-Guard-2-8B
    """
    from ..behaviour.judges.naming import judge_named
    from ..behaviour.table import evaluate_table, read_prompts
    from ..records.files import locked
    from ..study.folder import Study

    study = Study(run)
    judges = [judge_named(name) for name in judge or ["substrings"]]
    sets, notes = {}, list[str]()
    for source in prompts or []:
        name, texts = read_prompts(source, notes)
        if name in sets:
            raise PromptError(f"two prompt sets are called {name!r}: name them, as NAME={source}")
        sets[name] = texts
    for note in notes:
        error_console.print(note, markup=False)
    if not sets:
        sets = {"harmful": list(study.harmful.test), "harmless": list(study.harmless.test)}
    if limit:
        sets = {name: texts[:limit] for name, texts in sets.items()}
    folder = out or study.folder / "evaluation"
    with bars(quiet) as progress, locked(folder, ("replies", "verdicts")):
        loaded = load_like(study, progress, model, dtype, device)
        table = evaluate_table(
            loaded,
            study.selection.chosen,
            sets,
            folder,
            conditions=condition or CONDITIONS,
            judges=judges,
            max_new_tokens=max_new_tokens,
            seed=seed,
            form=study.selection.form,
            statistics=study.candidates.statistics,
            allow_gap=allow_gap,
            progress=progress,
        )
    log.write({"event": "result", "rates": table.to_frame().to_dict("records")})
    if not quiet:
        columns = ("prompts", "condition", "judge", "refused or safe", "95% interval", "n")
        rows = (
            (name, what.replace("_", " "), who, f"{r.rate:.0%}", f"{r.low:.0%} to {r.high:.0%}", str(r.n))
            for (name, what, who), r in table.rates.items()
        )
        show_table(columns, rows, f"{table.model}: direction at {table.direction.label}")
        for a in table.agreements:
            shares = f"agree on {a.agreed}, Cohen's kappa {a.kappa:.2f}, {len(a.disagreements)} disagreements"
            say(f"{a.first} and {a.second}", shares)
    say("table", folder / "table.safetensors")
