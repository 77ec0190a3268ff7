"""One resumable folder: values filed under the digest of everything that determines them.

Studies, sharded items, suffix screens and judged replies keep their work here. Each file is written whole (see
``files``), so a kill costs only the work in progress.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from ..errors import ResultError
from .base import Record, load_record
from .files import write_atomically, write_json

BATCH = 64  # entries: few files for thousands of replies, and little to write again for one more
# What reading a file of unknown origin may raise: such a file is worth no more than a missing one.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, safetensors.SafetensorError)


def content_key(*parts: Any) -> str:
    """SHA-256 of plain JSON, records, tensors (by their bytes) and paths; a ``TypeError`` for values of other kinds."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=_plain).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest = hashlib.sha256(content.numpy().tobytes()).hexdigest()
        return {"$tensor": digest, "dtype": str(value.dtype), "shape": list(value.shape)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {"$record": type(value).__name__, **fields}
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a {type(value).__name__} has no content key")


def _tensors(value: Any) -> dict[str, Tensor]:
    """A tensor, or a mapping of them, by name; nothing for any other value."""
    named = {"value": value} if isinstance(value, Tensor) else value
    if not isinstance(named, dict) or not all(isinstance(x, Tensor) for x in named.values()):
        return {}
    return {name: x.contiguous() for name, x in named.items()}


class Store:
    """A folder of values by name, each filed under one or several content keys.

    Args:
        folder: made with the first value; None keeps nothing.

    Example:
        >>> import tempfile
        >>> from refusal_lens.records.store import Store, content_key
        >>> store = Store(tempfile.mkdtemp())
        >>> key = content_key("reply", "How are you?", {"max_new_tokens": 8})
        >>> store.put("reply", ["Fine."], key)
        ['Fine.']
        >>> store.get("reply", key), store.get("reply", content_key("something else"))
        (['Fine.'], None)
    """

    def __init__(self, folder: str | Path | None):
        self.folder = None if folder is None else Path(folder)

    def part(self, name: str) -> Store:
        """Store in a folder of this one."""
        return Store(None if self.folder is None else self.folder / name)

    def get(self, name: str, key: str | None) -> Any:
        """Get the value under ``key`` (under any key if None), or None: absent, from other inputs, or unreadable."""
        if self.folder is None:
            return None
        path = self.folder / name
        with suppress(*UNREADABLE):
            document = json.loads(path.with_name(f"{path.name}.json").read_text("utf-8"))
            return document["value"] if key is None or key in document["keys"] else None
        with suppress(*UNREADABLE), safetensors.safe_open(path.with_name(f"{path.name}.safetensors"), "pt") as file:
            if key is None or key in json.loads(file.metadata()["keys"]):
                tensors = {label: file.get_tensor(label) for label in file.keys()}  # noqa: SIM118
                return tensors["value"] if set(tensors) == {"value"} else tensors
        with suppress(ResultError):
            return load_record(path, Record, key)
        return None

    def put(self, name: str, value: Any, *keys: str) -> Any:
        """File a record, tensors or plain JSON under ``keys``, in place of what had this name; returns the value."""
        if self.folder is None:
            return value
        path = self.folder / name
        if isinstance(value, Record):
            value.save(path, keys)
        elif tensors := _tensors(value):
            content = to_safetensors(tensors, metadata={"keys": json.dumps(keys)})
            write_atomically(path.with_name(f"{path.name}.safetensors"), content)
        else:
            write_json(path.with_name(f"{path.name}.json"), {"keys": keys, "value": value})
        return value

    def entries(self, name: str) -> dict[str, Any]:
        """Many small values by content key: all that ``add`` put under ``name``, in that order."""
        found: dict[str, Any] = {}
        for path in self._batches(name):
            with suppress(*UNREADABLE):
                found.update(json.loads(path.read_text("utf-8")))
        return found

    def add(self, name: str, entries: Mapping[str, Any]) -> None:
        """Keep ``entries`` (content key -> plain JSON); files hold at least ``BATCH`` of them, the last one aside."""
        if self.folder is None or not entries:
            return
        number, kept = 0, {}
        for path in self._batches(name)[-1:]:
            number = int(path.stem.rpartition("-")[2])
            with suppress(*UNREADABLE):
                kept = dict(json.loads(path.read_text("utf-8")))
            if not 0 < len(kept) < BATCH:
                number, kept = number + 1, {}
        write_json(self.folder / f"{name}-{number:06d}.json", {**kept, **entries})

    def _batches(self, name: str) -> list[Path]:
        if self.folder is None:
            return []
        path = self.folder / name
        numbers = (p for p in path.parent.glob("*.json") if p.stem.startswith(f"{path.name}-"))
        return sorted(p for p in numbers if p.stem[len(path.name) + 1 :].isdecimal())

    def clear(self) -> None:
        """Remove the folder."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
