"""Finished items on disk, so that a kill costs the items under way and not the stage."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors
from safetensors.torch import load, save
from torch import Tensor

from ..records.files import write_atomically


class Journal:
    """Results of items by label and index: one safetensors or JSON file each.

    Args:
        folder: of one stage with one set of inputs; None keeps nothing.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        self._maps = 0

    def numbered(self, label: str) -> str:
        """``label`` with the number of this map: a stage makes the same maps in the same order every time."""
        self._maps += 1
        return f"{self._maps:03d}-{label}"

    def read(self, label: str, index: int) -> Tensor | dict[str, Tensor] | list[str] | None:
        """The result, or None when it isn't there."""
        if self.folder is None:
            return None
        stem = self.folder / f"{label}-{index:05d}"
        try:
            found = load(stem.with_suffix(".safetensors").read_bytes())
            return found["value"] if set(found) == {"value"} else found
        except (OSError, safetensors.SafetensorError):
            pass
        try:
            return json.loads(stem.with_suffix(".json").read_text("utf-8"))
        except (OSError, ValueError):
            return None

    def write(self, label: str, index: int, value: Tensor | dict[str, Tensor] | list[str]) -> None:
        """Keep a result."""
        if self.folder is None:
            return
        stem = self.folder / f"{label}-{index:05d}"
        if isinstance(value, Tensor):
            value = {"value": value}
        if isinstance(value, dict):
            tensors = {name: x.contiguous() for name, x in value.items()}
            write_atomically(stem.with_suffix(".safetensors"), save(tensors))
        else:
            write_atomically(stem.with_suffix(".json"), json.dumps(value, ensure_ascii=False).encode())
