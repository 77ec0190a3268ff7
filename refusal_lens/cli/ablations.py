"""``refusal-lens ablations MODEL --direction RUN``: every form of ablation beside its placebos."""

from typing import Annotated

import typer
from rich.table import Column

from .options import OfRun, OfRunDevice, OfRunDtype, OfRunModel
from .terminal import LATEST, LogJson, Quiet, bars, load_like, log, say, show_table


def ablations(
    model: OfRunModel = None,
    direction: OfRun = LATEST,
    form: Annotated[
        list[str] | None, typer.Option(help="paper, stream, affine, scaled or oblique; repeatable (default: all).")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Random directions of each placebo.")] = 3,
    replies: Annotated[int, typer.Option(min=0, help="Answer at most N harmful test prompts; 0 for none.")] = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of replies.")] = 32,
    limit: Annotated[int, typer.Option(min=0, help="At most N prompts of each kind and split; 0 for all.")] = 0,
    dtype: OfRunDtype = None,
    device: OfRunDevice = None,
    quiet: Quiet = False,
    log_json: LogJson = None,
) -> None:
    """Measure every form of ablation of RUN's direction beside its placebos, and recommend one.

    The record goes into RUN; `refusal-lens report RUN` adds the section to its report.

    Examples:

      refusal-lens ablations

      refusal-lens ablations google/gemma-3-1b-it --direction runs/gemma --form paper --form scaled
    """
    from ..data.prompts import PromptPair, PromptSet
    from ..direction.forms import compare_ablations
    from ..records.files import locked
    from ..study.folder import Study

    study = Study(direction)

    def some(prompts: PromptSet) -> PromptSet:
        cut = limit or None
        return PromptSet(prompts.name, prompts.train, prompts.val[:cut], prompts.test[:cut], prompts.notes)

    options = {} if form is None else {"forms": form}
    with bars(quiet) as progress, locked(study.folder, ()):
        found = compare_ablations(
            load_like(study, progress, model, dtype, device),
            study.selection.chosen,
            PromptPair(some(study.harmful), some(study.harmless)),
            study.refusal_tokens,
            statistics=study.candidates.statistics,
            seeds=range(1, seeds + 1),
            max_kl=study.selection.thresholds["max_kl"],
            replies=replies,
            max_new_tokens=max_new_tokens,
            progress=progress,
            **options,
        )
        path = found.save(study.folder / "ablations")
    one = found.test[0]
    title = f"ablation of {found.direction.label} on {one.harmful.n} harmful, {one.kl.n} harmless test prompts"
    names = [Column(name, no_wrap=True) for name in ("form", "along", "metric, harmful", "KL", "refused in replies")]
    rows = [(e.form, e.along, e.harmful, f"{e.kl.mean:.2g}", e.refused) for e in found.test]
    rows = [("none", "", found.harmful, "", found.refused), *rows]
    log.write({"event": "result", "forms": found.to_frame().to_dict("records"), "recommended": found.recommended})
    if not quiet:
        show_table(names, [["" if x is None else str(x).partition(" (n")[0] for x in row] for row in rows], title)
        for name in found.forms:
            say(name, found.verdict(name) or "nothing speaks against it")
        for name, why in found.left_out.items():
            say(name, f"not measured: {why}")
    if found.warning:
        say("warning", found.warning)
    say("recommended", found.recommended or "none")
    say("record", path)
