"""``refusal-lens certify MODEL``: the table of identities."""

import math
from pathlib import Path
from typing import Annotated

import typer

from .options import Model
from .terminal import LogJson, Quiet, bars, log, say, show_table


def certify(
    model: Model = "organism",
    out: Annotated[Path | None, typer.Option(help="Save the certificate here (JSON).")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 ...")] = None,
    float64: Annotated[
        bool | None, typer.Option(help="Measure in float64 too (default: below 1e9 parameters).")
    ] = None,
    quiet: Quiet = False,
    log_json: LogJson = None,
) -> None:
    """Measure how exact every identity is on MODEL; exits with 1 if one does not hold.

    Examples:

      refusal-lens certify organism

      refusal-lens certify model.gguf --dtype float32 --out certificate.json
    """
    from ..exactness.identities import certify as measure
    from ..models.load import load_model

    with bars(quiet) as progress:
        with progress("load the model", 0):
            loaded = load_model(model, dtype=dtype)
        with progress("certify", 0):
            found = measure(loaded, float64=float64)
    columns = ("identity", "result", f"largest relative error, {found.dtype}", "limit", "in float64", "note")
    rows = []
    for i in found.identities:
        numbers = ["-" if math.isnan(x) else f"{x:.2g}" for x in (i.relative, i.tolerance, i.relative64)]
        rows.append((i.name, i.result, *numbers, i.note))
    log.write({"event": "result", "passed": found.passed, "identities": list(found.identities)})
    if not quiet:
        show_table(columns, rows, f"{found.model}, {found.backend}, {found.dtype}")
    if out is not None:
        say("certificate", found.save(out))
    if not found.passed:
        raise typer.Exit(1)
