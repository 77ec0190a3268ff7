"""``refusal-lens explore MODEL --direction RUN``: the explorer for those who have no notebook open."""

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import SettingError
from .options import OfRun, OfRunDevice, OfRunDtype, OfRunModel
from .terminal import LATEST, loading_of, say

CELLS = (
    "import refusal_lens as rl",
    """study = rl.Study({folder!r})
model = rl.load_model({model!r}, **{options!r})
found = rl.direction.FoundDirection(study.selection, study.candidates, study.refusal_tokens)
prompts = rl.data.PromptPair(study.harmful, study.harmless)
suffixes = {suffixes}""",
    "explorer = rl.explore(model, found, prompts, suffixes, top_heads=study.heads or ())\nexplorer",
)


def explore(
    model: OfRunModel = None,
    direction: OfRun = LATEST,
    suffixes: Annotated[
        Path | None, typer.Option(help="Suffixes to pick from, as for `hijack` (default: for the organism, its own).")
    ] = None,
    app: Annotated[str, typer.Option(help="lab, voila, or none to write the notebook only.")] = "lab",
    out: Annotated[Path | None, typer.Option(help="The notebook; by default one in a new temporary folder.")] = None,
    browser: Annotated[bool, typer.Option(help="Open it in the default browser.")] = True,
    dtype: OfRunDtype = None,
    device: OfRunDevice = None,
) -> None:
    """Explore MODEL in the browser: JupyterLab or Voilà on a notebook that is ready to run.

    Needs the extra `notebooks`: pip install 'refusal-lens[notebooks]' (for --app voila, also pip install voila).

    Examples:

      refusal-lens explore

      refusal-lens explore model.gguf --direction runs/mine --suffixes suffixes.jsonl --app voila
    """
    from ..study.folder import Study

    modules = {"lab": "jupyterlab", "voila": "voila", "none": "json"}
    if app not in modules:
        raise SettingError(f"there is no --app {app}; choose lab, voila or none")
    for module in (modules[app], *(("anywidget",) if app != "none" else ())):
        if importlib.util.find_spec(module) is None:
            extra = "voila" if module == "voila" else "'refusal-lens[notebooks]'"
            raise SettingError(f"{module} is not installed: pip install {extra}")
    study = Study(direction)
    options, name = loading_of(study, dtype, device), model or study.provenance["settings"]["model"]
    texts = {
        "folder": str(study.folder.resolve()),
        "model": str(Path(name).resolve()) if Path(name).exists() else name,
        "options": {key: value for key, value in options.items() if value is not None},
        "suffixes": _suffixes(suffixes, name),
    }
    path = out or Path(tempfile.mkdtemp(prefix="refusal-lens-")) / "explore.ipynb"
    path.write_text(json.dumps(_notebook([cell.format(**texts) for cell in CELLS])), "utf-8")
    say("notebook", path)
    if app != "none":
        quiet = [] if browser else ["--no-browser"]
        raise typer.Exit(subprocess.call([sys.executable, "-m", modules[app], *quiet, str(path)]))


def _suffixes(given: Path | None, model: str) -> str:
    if given is not None:
        return f"rl.SuffixSet.load({str(given.resolve())!r})"
    return "rl.SuffixSet.load(rl.organism.suffixes())" if model == "organism" else "()"


def _notebook(cells: list[str]) -> dict[str, Any]:
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made: list[dict[str, Any]] = [
        {"cell_type": "code", "id": f"cell-{i}", "metadata": {}, "source": text, "outputs": [], "execution_count": None}
        for i, text in enumerate(cells)
    ]
    return {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
