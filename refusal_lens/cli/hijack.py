"""``refusal-lens hijack MODEL --suffixes F --direction RUN --out DIR``."""

from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from .options import Address, EngineName, Model, OfRun, OfRunDevice, OfRunDtype, Workers
from .terminal import LATEST, LogJson, Quiet, bars, console, error_console, load_like, log, say

N_CHOOSE = 32  # prompts that choose the top heads: validation prompts of RUN, then, where these are few, training ones
Grid = Annotated[
    list[str] | None,
    typer.Option(
        help="Patch the random run's cells into the suffixed one: resid_pre, attn_out, mlp_out, z (repeatable)."
    ),
]


def hijack(
    model: Model = "organism",
    suffixes: Annotated[
        Path | None,
        typer.Option(help="Suffixes: .jsonl, .csv, .txt, nanoGCG or JailbreakBench .json (default: the organism's)."),
    ] = None,
    direction: OfRun = LATEST,
    out: Annotated[Path | None, typer.Option(help="Result folder; by default `suffixes` in RUN.")] = None,
    kind: Annotated[str, typer.Option(help="Kind of suffixes, where the file gives none.")] = "adversarial",
    column: Annotated[list[str] | None, typer.Option(help="Column names: suffix=NAME, kind=NAME, score=NAME.")] = None,
    harmful: Annotated[str | None, typer.Option(help="Harmful prompts to report on (default: RUN's test).")] = None,
    prompts: Annotated[int, typer.Option(min=2, help="Report on the first N of these that are refused.")] = 128,
    harmless: Annotated[int, typer.Option(min=0, help="At most this many of RUN's harmless test prompts.")] = 64,
    borderline: Annotated[
        Path | None, typer.Option(help="Harmless prompts that look harmful (over-refusal), to test the detectors on.")
    ] = None,
    top: Annotated[int, typer.Option(min=0, help="Number of top heads; 0 for 8, or a layer's heads if fewer.")] = 0,
    detail: Annotated[
        int, typer.Option(min=0, help="Investigate only the N strongest suffixes (and the benign ones); 0 for all.")
    ] = 0,
    shuffled: Annotated[bool, typer.Option(help="Also test each suffix with its tokens shuffled.")] = True,
    causal: Annotated[str, typer.Option(help="Suffixes to test causally: 'working', 'all' or 'none'.")] = "working",
    grid: Grid = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=0, help="Length of replies; 0 to judge by the refusal metric alone.")
    ] = 24,
    seed: Annotated[int, typer.Option(help="Seed of random suffixes, random heads and placebos.")] = 0,
    dtype: OfRunDtype = None,
    device: OfRunDevice = None,
    engine: EngineName = "local",
    address: Address = None,
    workers: Workers = None,
    quiet: Quiet = False,
    log_json: LogJson = None,
) -> None:
    """Find out what each suffix does inside MODEL, and test it causally; resumes where it stopped.

    Examples:

      refusal-lens hijack organism --direction runs/latest

      refusal-lens hijack model.gguf --suffixes suffixes.jsonl --direction runs/mine --out runs/mine/suffixes

      refusal-lens hijack model.gguf --suffixes many.txt --direction runs/mine --harmful advbench.csv --detail 5
    """
    from ..data.organism import suffixes as embedded
    from ..data.suffixes import SuffixSet
    from ..engines.local import named_engine
    from ..errors import PromptError
    from ..hijacking.investigation import Settings, investigate
    from ..hijacking.section import hijacking_page
    from ..records.files import locked, write_atomically
    from ..study.config import StudyConfig
    from ..study.folder import Study

    if suffixes is None and model != "organism":
        raise PromptError("give --suffixes: only the embedded model brings its own")
    found = SuffixSet.load(suffixes or embedded(), kind, columns=dict(c.partition("=")[::2] for c in column or ()))
    study = Study(direction)
    folder = out or study.folder / "suffixes"
    how: Any = {"causal": causal, "shuffled": shuffled, "grids": tuple(grid or ())}
    settings = Settings(top or None, max_new_tokens, detail=detail or None, prompts=prompts, seed=seed, **how)
    inputs = _inputs(study, harmful, harmless, borderline)
    places = {name: study.provenance["settings"].get(name) for name in ("device", "device_map")}
    config = StudyConfig(model, **places | ({"device": device} if device else {}))
    make = named_engine(engine, config, address, workers)
    with bars(quiet) as progress, locked(folder, ("screen", "suffixes")):
        loaded = load_like(study, progress, model, dtype, device)
        with closing(make(loaded)) as running:
            where: Any = {"folder": folder, "progress": progress, "engine": running}
            report = investigate(loaded, suffixes=found, **inputs, settings=settings, **where)
    write_atomically(folder / "report.html", hijacking_page(report).render().encode())
    log.write({"event": "result", "suffixes": report.results_frame().to_dict("records")})
    if not quiet:
        console.print(_findings(loaded.name, report))
    say("report", folder / "report.html")


def _inputs(study: Any, harmful: str | None, harmless: int, borderline: Path | None) -> dict[str, Any]:
    """The study's direction and tokens; prompts to report on, without those that chose the direction or the heads."""
    from ..behaviour.table import read_prompts
    from ..data.borderline import told_apart

    notes: list[str] = []
    texts = list(study.harmful.test) if harmful is None else read_prompts(harmful, notes)[1]
    edge = told_apart(borderline, notes)[0] if borderline else []
    known = {*study.harmful.train, *study.harmful.val}
    if seen := known & set(texts):
        texts = [text for text in texts if text not in known]
        notes.append(f"{len(seen)} prompts left out: RUN used them to find its direction and heads")
    for note in notes:
        error_console.print(note, markup=False)
    return {
        "prompts": texts,
        "harmless": list(study.harmless.test)[:harmless],
        "borderline": edge,
        "direction": study.selection.chosen,
        "head_prompts": [*study.harmful.val, *study.harmful.train][:N_CHOOSE],
        "refusal_tokens": study.refusal_tokens,
    }


def _findings(model: str, report: Any) -> Table:
    """One row per suffix: its number, its kind and as much of its text as the terminal holds."""
    from ..hijacking.section import few_refused

    title = escape(f"{model}: {report.plain.n} refused prompts, top heads {', '.join(report.head_labels)}")
    shown = Table(
        Column("#", justify="right", no_wrap=True, min_width=2),
        Column("kind", no_wrap=True, min_width=11, max_width=16),
        Column("suffix", no_wrap=True, ratio=1, overflow="ellipsis"),
        *(
            Column(column, justify="right", no_wrap=True, min_width=width)
            for column, width in (("len", 3), ("refused", 7), ("random", 6), ("rise", 5))
        ),
        Column("finding", no_wrap=True, min_width=26),
        title="\n".join(filter(None, (few_refused(report), title))),
        caption="refused with the suffix and with random tokens; rise of the top heads' attention to it above random",
        expand=True,
        box=None,
        padding=(0, 1, 0, 0),
    )
    for number, row in enumerate(report.results_frame().to_dict("records"), start=1):
        shown.add_row(
            str(number),
            escape(row["kind"]),
            escape(row["suffix"].strip()),
            str(row["tokens"]),
            f"{row['refused']:.0%}",
            f"{row['refused_random']:.0%}",
            f"{row['attention_rise']:+.2f}",
            row["mechanism"],
        )
    return shown
