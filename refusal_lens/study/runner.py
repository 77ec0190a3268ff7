"""Stages of a study: run once for the same inputs, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from ..loading import load_model, source_digest
from ..model import HookedChatModel
from ..progress import Progress
from ..records import Record, load_record, write_atomically
from .config import StudyConfig


class Runner:
    """Runs stages into a folder, skipping those whose inputs have not changed."""

    def __init__(self, folder: Path, config: StudyConfig, progress: Progress):
        self.folder, self.config, self.progress = folder, config, progress
        self._model: HookedChatModel | None = None
        self.digest = source_digest(config.model)

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

    def stage(self, name: str, inputs: list[Any], outputs: dict[str, type[Record]], work: Callable) -> list[Any]:
        """The records of a stage: read if ``inputs`` are those of last time, else made by ``work`` and saved."""
        text = json.dumps([name, metadata.version("refusal-lens"), self.digest, *inputs], sort_keys=True, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()
        mark = self.folder / "stages" / f"{name}.json"
        try:
            if json.loads(mark.read_text())["key"] == key:
                return [load_record(self.folder / file, cls) for file, cls in outputs.items()]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # never finished, or not readable: run it
        made = work()
        for file, record in zip(outputs, made, strict=True):
            record.save(self.folder / file)
        # The mark comes last: a kill before it costs this stage only.
        write_atomically(mark, json.dumps({"key": key}).encode())
        return made
