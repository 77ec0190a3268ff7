"""Stages of a study: run once for the same inputs, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from ..engines.base import Engine
from ..engines.choice import MakeEngine
from ..engines.journal import Journal
from ..engines.local import LocalEngine
from ..models.load import load_model, source_digest
from ..models.model import HookedChatModel
from ..progress import Progress
from ..records.base import load_record
from ..records.files import file_digest, write_atomically
from .config import StudyConfig


class Runner:
    """Runs stages into a folder, skipping those whose inputs have not changed."""

    def __init__(self, folder: Path, config: StudyConfig, progress: Progress, make_engine: MakeEngine = LocalEngine):
        self.folder, self.config, self.progress = folder, config, progress
        self._model: HookedChatModel | None = None
        self._make_engine = make_engine
        self._engine: Engine | None = None
        self._journal = Journal(None)  # finished items of the stage under way
        self.digest = source_digest(config.model)
        self.files: dict[str, str] = {}  # what the stages wrote or found: path in the folder -> SHA-256

    @property
    def model(self) -> HookedChatModel:
        """The model, loaded when the first stage needs it."""
        if self._model is None:
            c = self.config
            with self.progress("load the model", 0):
                self._model = load_model(
                    c.model, dtype=c.dtype, device=c.device, device_map=c.device_map, system=c.system
                )
        return self._model

    @property
    def engine(self) -> Engine:
        """Where sharded work runs, made when the first stage needs it."""
        if self._engine is None:
            self._engine = self._make_engine(self.model)
        self._engine.journal = self._journal
        return self._engine

    def close(self) -> None:
        """Give back what the engine holds."""
        if self._engine is not None:
            self._engine.close()

    def stage(self, name: str, inputs: list[Any], outputs: Mapping[str, type[Any]], work: Callable) -> list[Any]:
        """The records of a stage: read if ``inputs`` are those of last time, else made by ``work`` and saved."""

        def read() -> list[Any]:
            return [load_record(self.folder / file, cls) for file, cls in outputs.items()]

        def make() -> tuple[list[Any], list[Path]]:
            made = work()
            self._withdraw()
            return made, [record.save(self.folder / file) for file, record in zip(outputs, made, strict=True)]

        return self._once(name, inputs, read, make)

    def document(self, name: str, inputs: list[Any], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A stage whose result is one plain JSON file, ``name``.json."""
        file = self.folder / f"{name}.json"

        def make() -> tuple[dict[str, Any], list[Path]]:
            made = work()
            self._withdraw()
            write_atomically(file, json.dumps(made, indent=1, ensure_ascii=False).encode())
            return made, [file]

        return self._once(name, inputs, lambda: json.loads(file.read_text("utf-8")), make)

    def _once(self, name: str, inputs: list[Any], read: Callable, make: Callable) -> Any:
        text = json.dumps([name, metadata.version("refusal-lens"), self.digest, *inputs], sort_keys=True, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()
        mark = self.folder / "stages" / f"{name}.json"
        try:
            known = json.loads(mark.read_text("utf-8"))
            # The files' own hashes: a run with other settings may have replaced them and died before its mark.
            if known["key"] == key and all(file_digest(self.folder / f) == h for f, h in known["files"].items()):
                found = read()
                self.files |= known["files"]
                return found
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass  # never finished, or not readable: run it
        items = self.folder / "items" / f"{name}-{key[:16]}"
        self._journal = Journal(items)
        made, paths = make()
        files = {path.relative_to(self.folder).as_posix(): file_digest(path) for path in paths}
        # The mark comes last: a kill before it costs this stage only.
        write_atomically(mark, json.dumps({"key": key, "files": files}, indent=1).encode())
        shutil.rmtree(items, ignore_errors=True)
        self.files |= files
        return made

    def tidy(self) -> None:
        """Remove items that were kept for going on: of a run killed after its mark, or one with other settings."""
        shutil.rmtree(self.folder / "items", ignore_errors=True)

    def _withdraw(self) -> None:
        """Take back what describes the folder as a whole, before a record in it changes."""
        for name in ("report.html", "summary.json", "study.json"):
            (self.folder / name).unlink(missing_ok=True)
