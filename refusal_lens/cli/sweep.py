"""``refusal-lens sweep models.toml``: several models, one report that compares them."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Address, EngineName, Workers
from .terminal import LogJson, Quiet, bars, log, say, show_table


def sweep(
    file: Annotated[Path, typer.Argument(help="TOML file with \\[defaults] and one table \\[models.NAME] per model.")],
    out: Annotated[Path, typer.Option(help="Result folder; each model gets a folder in it.")] = Path("runs/sweep"),
    engine: EngineName = "local",
    address: Address = None,
    workers: Workers = None,
    quiet: Quiet = False,
    log_json: LogJson = None,
) -> None:
    r"""Run the study for every model in FILE; resumes where it stopped. Exits with 1 if a model failed.

    Example: refusal-lens sweep models.toml --out runs/sizes

    models.toml:

      \[defaults]
      harmful = "advbench"
      harmless = "alpaca"

      \[models.qwen-0_5b]
      model = "Qwen/Qwen2.5-0.5B-Instruct"

      \[models.qwen-1_5b]
      model = "Qwen/Qwen2.5-1.5B-Instruct"
      coeff = 1.5
    """
    from ..engines.local import named_engine
    from ..study.sweep import read_sweep, run_sweep

    models = read_sweep(file)
    with bars(quiet) as progress:
        found = run_sweep(models, out, progress, lambda config: named_engine(engine, config, address, workers))
    log.write({"event": "result", "folder": str(out.resolve()), "errors": {k: v.error for k, v in found.items()}})
    if not quiet:
        columns = ("model", "direction", "harmful refused", "ablated", "harmless refused", "added", "error")
        rows: list[tuple[str, ...]] = []
        for name, item in found.items():
            if item.error:
                rows.append((name, "", "", "", "", "", item.error))
                continue
            rates, place = item.summary["refusal"], item.summary["direction"]
            shown = {"harmful": ("baseline", "ablation"), "harmless": ("baseline", "addition")}
            cells = [f"{rates[kind][name]['rate']:.0%}" for kind, names in shown.items() for name in names]
            rows.append((name, f"({place['pos']}, {place['layer']})", *cells, ""))
        show_table(columns, rows, f"{len(found)} models")
    say("report", out / "report.html")
    if any(item.error for item in found.values()):
        raise typer.Exit(1)
