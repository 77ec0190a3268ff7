"""``refusal-lens run MODEL``: the study, a part of it, or its state."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from ..study.config import StudyConfig
from .options import Address, EngineName, Out, Workers, takes_settings
from .terminal import LATEST, LogJson, Quiet, bars, console, log, say, show_table


@takes_settings
def run(
    config: StudyConfig,
    out: Out = LATEST,
    only: Annotated[
        str | None, typer.Option(metavar="STAGE", help="Run this stage and those it needs, then stop (see --list).")
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="Show the stages, their state in the result folder and times; run nothing.")
    ] = False,
    engine: EngineName = "local",
    address: Address = None,
    workers: Workers = None,
    quiet: Quiet = False,
    log_json: LogJson = None,
) -> None:
    """Find and test the refusal direction of MODEL; resumes where it stopped.

    Examples:

      refusal-lens run

      refusal-lens run Qwen/Qwen2.5-0.5B-Instruct --harmful advbench --harmless alpaca --out runs/qwen

      refusal-lens run model.gguf --harmful data/harmful --harmless data/harmless --relax

      refusal-lens run --only selection            the direction only; the same command without --only continues

      refusal-lens run --list                      which stages are done in runs/latest, and what these settings change

      refusal-lens run Qwen/Qwen2.5-7B-Instruct --device-map auto --quiet --log-json job.jsonl     (a batch job)
    """
    if list_:
        _show_stages(config, out)
        return
    from .. import study as studies
    from ..engines.local import named_engine

    make = named_engine(engine, config, address, workers)
    if only is not None:
        with bars(quiet) as progress:
            found = studies.run_stage(only, config, out, progress, engine=make)
        log.write({"event": "result", "folder": str(out.resolve()), "stage": only})
        if not quiet:
            say(only, str(found)[:2000])
        say(only, out)
        return
    with bars(quiet) as progress:
        study = studies.run_study(config, out, progress, engine=make)
    log.write({"event": "result", "folder": str(study.folder.resolve()), "summary": study.summary})
    if not quiet:
        console.print(findings(study.summary))
        for name, why in study.missing.items():
            say(f"not available on this model: {name}", why)
    say("report", study.folder / "report.html")
    if not quiet:
        say("open it with", f"refusal-lens open {shlex.quote(str(study.folder))}")


def _show_stages(config: StudyConfig, out: Path) -> None:
    from ..study.pipeline import stage_states
    from ..study.sections import cost_cells

    states = stage_states(config, out)
    numbers = (Column(name, justify="right") for name in ("seconds", "passes", "tokens"))
    rows = []
    for s in states:
        settings = ", ".join(f"{name}={value}" for name, value in s.settings.items())
        settings += f" (now {'; '.join(s.changed)})" if s.changed else ""
        rows.append((s.name, s.state, *cost_cells((s.seconds, s.passes, s.tokens)), settings))
    log.write({"event": "stages", "stages": [vars(s) for s in states]})
    show_table(("stage", "state", *numbers, "settings"), rows, str(out))


def findings(summary: dict[str, Any]) -> Table:
    """The short table at the end of a run: rates with intervals, and the size of both effects in words."""
    from ..report.claims import few_in
    from ..stats import Rate
    from ..study.summary import effect_sentence

    direction, scores = summary["direction"], summary["scores"]
    title = escape(f"{summary['model']}: direction at ({direction['pos']}, {direction['layer']})")
    title = "\n".join(filter(None, (few_in(summary), title)))
    table = Table("prompts", "condition", "refused", "95% interval", "n", title=title)
    for prompts, rates in summary["refusal"].items():
        for condition, r in rates.items():
            interval = f"{r['low']:.0%} to {r['high']:.0%}"
            table.add_row(prompts, condition.replace("_", " "), f"{r['rate']:.0%}", interval, str(r["n"]))
    caption = f"bypass {scores['bypass']:.2f}, induce {scores['induce']:.2f}, KL {scores['kl']:.3f}"
    rates = {name: {c: Rate(**r) for c, r in found.items()} for name, found in summary["refusal"].items()}
    claims = (("necessary", "harmful", "ablation", -1), ("sufficient", "harmless", "addition", +1))
    for word, kind, name, sign in claims:
        caption += f"\n{word}: {effect_sentence(rates[kind], name, sign)}"
    table.caption = caption + (f"\nrelaxed: {direction['relaxed']}" if direction["relaxed"] else "")
    return table
