"""Declared stages of a study: what each needs, uses and makes, without a model.

Every slice declares its stages in its ``stage.py``; ``study`` runs them. The declarations are read without a model
too (by a report, by the docs), so a stage imports what measures inside its ``run``.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..progress import Progress

if TYPE_CHECKING:
    from ..models.model import HookedChatModel
    from .base import Engine


class Job(ABC):
    """The study's side of a stage: settings (``StudyConfig``), result folder, progress, model, engine, inputs."""

    config: Any
    folder: Path
    progress: Progress

    @property
    @abstractmethod
    def model(self) -> HookedChatModel:
        """The model, loaded when a stage first needs it."""

    @property
    @abstractmethod
    def engine(self) -> Engine:
        """Where sharded work runs."""

    @abstractmethod
    def input(self, name: str) -> Any:
        """Read "prompts" (harmful and harmless ``PromptSet``) or "suffixes" from their files, once."""


@dataclass(frozen=True)
class Stage:
    """One step of a study.

    The content key of a stage is made of its name and version, the settings it uses, its inputs, the model's identity
    and the hashes of the files of the stages it needs.

    Attributes:
        name: also that of its record in ``Study``.
        makes: file in the result folder, without ending -> class of the record; ``dict`` for plain JSON.
        run: (job, one argument per stage that it needs, by that stage's name) -> the record, or one record per file. A
            stage with several files is given to others as a tuple.
        holds: what the files hold, for docs/result_folder.md.
        version: raise it when the meaning of the result changes.
        uses: names of settings (fields of ``StudyConfig``).
        inputs: see ``Job.input``.
        when: setting without which the stage is left out.
        optional: a model may not support it; then the reason is the result, and the report is made without it, as
            without a stage that the version which wrote the folder did not have.
        since: first schema of the result folder in which it is always present.
        folders: its own working folders in the result folder.
        command: the command that makes the files, where it is not ``refusal-lens run``.
        section: (study) -> its section of the report, or None.
    """

    name: str
    makes: Mapping[str, type]
    run: Callable[..., Any]
    holds: str = ""
    version: int = 1
    uses: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    when: str = ""
    optional: bool = False
    since: int = 1
    folders: tuple[str, ...] = ()
    command: str = ""
    section: Callable[[Any], Any] | None = None

    @cached_property
    def needs(self) -> tuple[str, ...]:
        """Names of the stages whose records ``run`` takes."""
        return tuple(inspect.signature(self.run).parameters)[1:]


def made_elsewhere(job: Job) -> Any:
    """Stand in for ``run`` in a stage that another command makes."""
    raise NotImplementedError("another command makes this")
