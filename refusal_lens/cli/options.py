"""Options of a command, derived from the fields of the settings."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ..study.config import SPLITS, StudyConfig

Out = Annotated[Path, typer.Option(help="Result folder.")]
EngineName = Annotated[str, typer.Option(help="local, or ray: spread the work over a Ray cluster.")]
Address = Annotated[
    str | None, typer.Option(help="Of a running Ray cluster: auto or HOST:PORT (default: Ray on this machine).")
]
Workers = Annotated[int | None, typer.Option(min=1, help="Ray workers, each with a model (default: what fits).")]
Model = Annotated[str, typer.Argument(help="Hub id, folder, .gguf file, or 'organism' (the embedded model).")]
OfRunDtype = Annotated[str | None, typer.Option(help="float32, bfloat16 ... (default: that of RUN).")]
OfRunDevice = Annotated[str | None, typer.Option(help="cpu, cuda ... (default: that of RUN).")]


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _parameters() -> list[inspect.Parameter]:
    """One option per setting, ``model`` as the argument."""
    hints, found = get_type_hints(StudyConfig), []
    for field in dataclasses.fields(StudyConfig):
        facts, kind, default = field.metadata, hints[field.name], field.default
        if field.name == "model":
            found.append(_parameter("model", Annotated[str, typer.Argument(help=facts["help"])], default))
        elif field.name == "sizes":
            kinds = ("Training", "Validation", "Test")
            for name, what, size in zip(SPLITS, kinds, StudyConfig.sizes, strict=True):
                option = typer.Option(min=facts["least"], help=f"{what} prompts of each kind.")
                found.append(_parameter(name, Annotated[int, option], size))
        elif "option" in facts:
            kind = Annotated[list[str] | None, typer.Option(help=facts["help"])]
            found.append(_parameter(facts["option"], kind, None))
        else:
            least = {"min": facts["least"]} if kind is int and "least" in facts else {}
            option = typer.Option(help=facts["help"], **least)
            # None: not given, so that the embedded model may have a default of its own.
            kind, default = (kind | None, None) if "embedded" in facts else (kind, default)
            found.append(_parameter(field.name, Annotated[kind, option], default))
    return found


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """A command with one option per field of ``StudyConfig`` beside its own; it is given the settings first."""
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
    given["sizes"] = tuple(given.pop(name) for name in SPLITS)
    for field in dataclasses.fields(StudyConfig):
        if "option" in field.metadata:
            given[field.name] = tuple(given.pop(field.metadata["option"]) or ())
        if "embedded" in field.metadata and given[field.name] is None:
            embedded = given["model"] == "organism"  # small enough for everything
            given[field.name] = field.metadata["embedded"] if embedded else field.default
    if given["suffixes"] == "none":
        given["suffixes"] = None
    return StudyConfig(**given)
