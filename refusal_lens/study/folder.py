"""A result folder: the records of each stage, and the report made of them."""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..attribution.stage import INSIDE
from ..data.prompts import PromptSet
from ..engines.stage import Stage
from ..errors import RefusalLensError, ResultError
from ..records.base import Record, load_record
from ..records.files import file_digest, write_atomically, write_json
from ..records.store import UNREADABLE
from ..refusal.records import Completions
from ..report.page import Page, plain
from .sections import model_section, provenance_section, scorecard_section
from .stages import BY_NAME, PIPELINE
from .summary import headline

# 1: no list of files, and maybe no certificate. 2: study.json comes last and lists every file with its SHA-256.
# 3: it says which stages the model can't have, and why.
FOLDER_SCHEMA = 3
SECONDS = "seconds.json"  # beside the marks of the stages: no result, so in no hash


class Cost(NamedTuple):
    """What a stage took when it was last run; NaN where it is not known."""

    seconds: float = math.nan
    passes: float = math.nan  # forward passes, those that end early included
    tokens: float = math.nan  # positions in them, padding included


def stage_costs(folder: Path) -> dict[str, Cost]:
    """What each stage took, by name, as far as the file can be read (older versions wrote the seconds only)."""
    costs: dict[str, Cost] = {}
    with suppress(*UNREADABLE):
        for name, took in json.loads((folder / SECONDS).read_text("utf-8")).items():
            known = took if isinstance(took, dict) else {"seconds": took}
            costs[str(name)] = Cost(**{k: float(known[k]) for k in Cost._fields if known.get(k) is not None})
    return costs


def load_file(path: Path, kind: type) -> Any:
    """The record, or for ``dict`` the plain JSON, in a file named without its ending; a ``ResultError`` where there is
    none, or a broken one, or a record of another kind."""
    if issubclass(kind, Record):
        return load_record(path, kind)
    path = path.with_name(f"{path.name}.json")
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ResultError(f"{path} can't be read ({error}); run the study again") from error
    if not isinstance(found, dict):
        raise ResultError(f"{path} holds no object; run the study again")
    return found


def save_file(path: Path, record: Any) -> Path:
    """Write what ``load_file`` reads; returns the path with its ending."""
    if isinstance(record, Record):
        return record.save(path)
    write_json(path := path.with_name(f"{path.name}.json"), record)
    return path


class Study:
    """A result folder: the record of each stage by its name, loaded when first read.

    ``dir(study)`` lists the stages; the record of one that was left out, or that the model can't have, is None.

    Args:
        folder: where ``run_study`` put its results.

    Raises:
        ResultError: there is no finished study in the folder, or one of a newer version.
        AttributeError: an unknown name, with the known ones.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / "study.json").is_file():
            unfinished = "; its run was not finished: run it again" if (self.folder / "stages").is_dir() else ""
            raise ResultError(f"there is no study in {self.folder}: it has no study.json{unfinished}")
        schema = self.provenance.get("schema")
        if not isinstance(schema, int) or not 1 <= schema <= FOLDER_SCHEMA:
            raise ResultError(
                f"{self.folder / 'study.json'} has schema {plain(schema)}, and this version reads 1 to "
                f"{FOLDER_SCHEMA}: a newer refusal_lens wrote it, or the file is damaged"
            )

    @cached_property
    def changed_files(self) -> tuple[str, ...]:
        """Files changed since the run, by ``study.json``'s hashes (schema 1 has none)."""
        files = self.provenance.get("files", {})
        if not isinstance(files, dict):
            return ("study.json",)

        def same(name: str) -> bool:
            path, inside = self.folder / name, not Path(name).is_absolute() and ".." not in Path(name).parts
            return inside and path.is_file() and file_digest(path) == files[name]

        return tuple(name for name in files if not same(name))

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Settings, versions and hashes."""
        return load_file(self.folder / "study", dict)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """``summary.json`` (docs/result_folder.md describes it)."""
        return load_file(self.folder / "summary", dict)

    @cached_property
    def missing(self) -> Mapping[str, str]:
        """Stages that this model can't have, and why."""
        found = self.provenance.get("missing")
        return {str(name): str(why) for name, why in found.items()} if isinstance(found, dict) else {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in BY_NAME:
            raise AttributeError(f"a study has no {name!r}; it has {', '.join(self.__dir__())}")
        self.__dict__[name] = found = self._stage(BY_NAME[name])
        return found

    def __dir__(self) -> list[str]:
        own = [name for kind in type(self).__mro__ for name in vars(kind) if not name.startswith("_")]
        return sorted({*own, *BY_NAME, "folder"})

    def _stage(self, stage: Stage) -> Any:
        """The record of a stage (a tuple where it makes several), or None."""
        # A stage that the settings leave out may still be there, from an earlier run with others.
        settings = self.provenance.get("settings")
        left_out = stage.when and not (settings.get(stage.when) if isinstance(settings, dict) else None)
        if left_out or stage.name in self.missing:
            return None
        listed, files = self.provenance.get("files"), [(f"{file}.safetensors", f"{file}.json") for file in stage.makes]
        # What an optional stage makes is listed, unless the version that wrote the folder did not have it.
        named = isinstance(listed, dict) and any(name in listed for names in files for name in names)
        maybe = stage.command or self.provenance["schema"] < stage.since or (stage.optional and not named)
        if maybe and not all(any((self.folder / name).is_file() for name in names) for names in files):
            return None
        records = tuple(load_file(self.folder / file, kind) for file, kind in stage.makes.items())
        found: Any = records if len(records) > 1 else records[0]
        if stage.command or stage.name == "attacks":
            # One that the direction of an earlier run gave says nothing of this one.
            mine, its = self.selection.chosen, records[0].direction
            if its is None or (mine.model, mine.label) != (its.model, its.label):
                return None
            if not torch.equal(mine.unit, its.unit):
                return None
        return found

    @property
    def harmful(self) -> PromptSet:
        """Harmful prompts as used: training and validation splits are filtered."""
        return self.prompts[0]

    @property
    def harmless(self) -> PromptSet:
        """Harmless prompts as used."""
        return self.prompts[1]

    @property
    def completions(self) -> dict[str, Completions]:
        """Replies by prompt set."""
        return {"harmful": self.completions_harmful, "harmless": self.completions_harmless}

    @property
    def inside(self) -> dict[str, Any]:
        """Attribution records by name; empty when the study was run without them."""
        found = {name: getattr(self, name) for name in INSIDE}
        return {name: record for name, record in found.items() if record is not None}

    @cached_property
    def suffixes(self) -> Any:
        """Investigation by ``refusal-lens hijack``, else by the run itself; None without one for this direction."""
        left = self._stage(BY_NAME["suffixes"])
        return self.attacks if left is None else left

    def page(self) -> Page:
        """Compose the report as a ``Page`` from what the folder holds.

        Raises:
            ResultError: a record is missing or broken, or records come from different runs.
        """
        try:
            page = self._page()
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError) as error:
            if isinstance(error, RefusalLensError):
                raise
            # Each record is whole by itself, but the folder may come from anywhere.
            raise ResultError(
                f"the records in {self.folder} don't fit together ({type(error).__name__}: {str(error)[:120]}); run "
                "the study again"
            ) from error
        if not self.changed_files:
            return page
        note = f"Changed since the run, so not what it measured: {', '.join(self.changed_files)}."
        return replace(page, notes=(*page.notes, note))

    def _page(self) -> Page:
        sections = (stage.section(self) for stage in PIPELINE if stage.section is not None)
        return Page(
            title=f"The refusal direction of {self.provenance['model']['name']}",
            **headline(self),
            sections=(
                model_section(self.provenance, self.harmful, self.harmless, self.refusal_tokens),
                *(section for section in sections if section is not None),
                scorecard_section(self.summary),
                provenance_section(self.provenance, stage_costs(self.folder)),
            ),
        )

    def report(self, path: str | Path | None = None) -> Path:
        """Render the report (no model is needed) and return its path: ``report.html`` in the folder by default."""
        target = Path(path) if path is not None else self.folder / "report.html"
        write_atomically(target, self.page().render().encode())
        return target
