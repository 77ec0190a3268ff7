"""Options of a command, derived from the fields of the settings."""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ..study.config import SIZE_FIELDS, StudyConfig

Out = Annotated[Path, typer.Option(help="Result folder.")]
EngineName = Annotated[str, typer.Option(help="local, or ray: spread the work over a Ray cluster.")]
Address = Annotated[
    str | None, typer.Option(help="Address of a running Ray cluster: auto or HOST:PORT (default: Ray on this machine).")
]
Workers = Annotated[int | None, typer.Option(min=1, help="Ray workers, each with a model (default: as many as fit).")]
Model = Annotated[str, typer.Argument(help="Hub id, folder, .gguf file, or 'organism' (the embedded model).")]
OfRun = Annotated[
    Path, typer.Option(help="Result folder of `refusal-lens run`: its direction, prompts and refusal tokens.")
]
OfRunModel = Annotated[str | None, typer.Argument(help="Hub id, folder or .gguf; by default the model of RUN.")]
OfRunDtype = Annotated[str | None, typer.Option(help="float32, bfloat16 ... (default: RUN's).")]
OfRunDevice = Annotated[str | None, typer.Option(help="cpu, cuda ... (default: RUN's).")]


def _parameters() -> list[inspect.Parameter]:
    """One option per setting, ``model`` as the argument."""
    hints, found = get_type_hints(StudyConfig), []

    def add(name: str, kind: Any, default: Any, help: str, take: Any = typer.Option, **bounds: Any) -> None:
        annotation = Annotated[kind, take(help=help, **bounds)]
        found.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation))

    for field in dataclasses.fields(StudyConfig):
        facts, kind, default = field.metadata, hints[field.name], field.default
        if field.name == "model":
            add("model", str, default, facts["help"], typer.Argument)
        elif field.name == "sizes":
            kinds = ("Training", "Validation", "Test")
            for name, what, size in zip(SIZE_FIELDS, kinds, StudyConfig.sizes, strict=True):
                add(name, int, size, f"{what} prompts of each kind.", min=facts["least"])
        elif "option" in facts:
            add(facts["option"], list[str] | None, None, facts["help"])
        else:
            least = {"min": facts["least"]} if kind is int and "least" in facts else {}
            # None: not given, so that the embedded model may have a default of its own.
            kind, default = (kind | None, None) if "embedded" in facts else (kind, default)
            add(field.name, kind, default, facts["help"], **least)
    return found


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Add one option per field of ``StudyConfig`` to a command, which gets the settings as its first argument."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    settings = _parameters()

    def wrapped(**values: Any) -> None:
        given = {p.name: values.pop(p.name) for p in settings}
        command(_config(given), **values)

    parameters = [settings[0], *own, *settings[1:]]
    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    wrapped.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    )
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapped


def _config(given: dict[str, Any]) -> StudyConfig:
    given["sizes"] = tuple(given.pop(name) for name in SIZE_FIELDS)
    for field in dataclasses.fields(StudyConfig):
        if "option" in field.metadata:
            given[field.name] = tuple(given.pop(field.metadata["option"]) or ())
        if "embedded" in field.metadata and given[field.name] is None:
            embedded = given["model"] == "organism"  # small enough for everything
            given[field.name] = field.metadata["embedded"] if embedded else field.default
    if given["suffixes"] == "none":
        given["suffixes"] = None
    return StudyConfig(**given)
