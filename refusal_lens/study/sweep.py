"""Several models from one file, each with its own study, compared in one report."""

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ..engines.local import LocalEngine, MakeEngine
from ..errors import RefusalLensError, ResultError, SettingError
from ..progress import Progress, automatic
from ..records.files import write_atomically, write_json
from ..report.page import Page
from .config import StudyConfig
from .pipeline import run_study
from .sweep_section import Compared, sweep_section

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_sweep(path: str | Path) -> dict[str, StudyConfig]:
    """Settings of each model's study by its name, from a TOML file.

    ``[defaults]`` holds fields of ``StudyConfig`` for all models, a table ``[models.NAME]`` each model's own.

    Raises:
        ResultError: the file can't be read, names no model, or has a setting that does not exist.
    """
    try:
        content = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ResultError(f"{path} can't be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ResultError(f"{path} is not TOML: {error}") from error
    unknown = sorted(set(content) - {"defaults", "models"})
    models = content.get("models")
    if unknown or not isinstance(models, dict) or not models:
        raise ResultError(
            f"{path} must have a table [models.NAME] for each model and may have [defaults]"
            + (f"; it has {', '.join(unknown)}" if unknown else "")
        )
    configs = {}
    for name, settings in models.items():
        if not isinstance(settings, dict) or Path(name).name != name or name in (".", ".."):
            raise ResultError(f"{path}: [models.{name}] must be a table, and its name a plain folder name")
        try:
            configs[name] = StudyConfig.of({**content.get("defaults", {}), **settings})
        except (SettingError, TypeError) as error:
            raise ResultError(f"{path}, [models.{name}]: {error}") from error
    return configs


def run_sweep(
    models: Mapping[str, StudyConfig],
    folder: str | Path,
    progress: Progress = automatic,
    make_engine: Callable[[StudyConfig], MakeEngine] = lambda config: LocalEngine,
) -> dict[str, Compared]:
    """Run each model's study in ``folder``/NAME; write ``sweep.json`` and ``report.html``, which compare them.

    A model that fails is recorded with the reason and the others continue; finished stages are not run again.

    Args:
        progress: as in ``run_study``, for every stage of every model.
        make_engine: settings -> where sharded work runs.
    """
    folder, found = Path(folder), {}
    for name, config in models.items():
        try:
            study = run_study(config, folder / name, _named(name, progress), engine=make_engine(config))
            found[name] = Compared(study.summary, study.provenance["model"], f"{name}/report.html")
        except RefusalLensError as error:
            found[name] = Compared({}, {"name": config.model}, "", str(error))
        # After each, so that a long sweep can be looked at meanwhile.
        write_json(folder / "sweep.json", {name: vars(item) for name, item in found.items()})
        title = f"The refusal direction of {len(found)} models"
        page = Page(title, tuple(_sentences(found)), sections=(sweep_section(found),))
        write_atomically(folder / "report.html", page.render().encode())
    return found


def _named(name: str, progress: Progress) -> Progress:
    return lambda stage, total: progress(f"{name}: {stage}", total)


def _sentences(found: dict[str, Compared]) -> Iterator[str]:
    done = [name for name, item in found.items() if not item.error]
    yield f"{len(done)} of {len(found)} models have a refusal direction that was found and tested."
    for name in done:
        rates = found[name].summary["refusal"]
        parts = []
        for what, kind, effect in (("refusals of", "harmful", "ablation"), ("those of", "harmless", "addition")):
            before, after, placebo = (rates[kind][c]["rate"] for c in ("baseline", effect, f"random_{effect}"))
            parts.append(
                f"{effect} takes {what} {kind} prompts from {before:.0%} to {after:.0%} (random direction: "
                f"{placebo:.0%}, n = {rates[kind][effect]['n']})"
            )
        yield f"{name}: {'; '.join(parts)}."
