"""An append-only JSON-lines file with a key in each line: work that is done stays done, whatever happens next."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import ResultError


def digest(*parts: Any) -> str:
    """A key: 32 hex digits of the parts' JSON."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class JsonLog:
    """Values by key, in a file that survives being cut off in the middle of a line.

    A line that is not whole (a kill, a full disk) is left out when reading and cut off before the next one is
    written; its work is done again and nothing else is.

    Args:
        path: the file; made with the first entry. None keeps everything in memory.

    Raises:
        ResultError: the path can't be read, or is a link.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self.entries: dict[str, Any] = {}
        self.dropped = 0
        self._whole = 0
        if path is not None and path.is_symlink():
            raise ResultError(f"{path} is a link to another place; remove it, results are written inside their folder")
        if path is None or not path.exists():
            return
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ResultError(f"{path} can't be read ({error.strerror}); move it away to begin anew") from error
        self._whole = content.rfind(b"\n") + 1
        self.dropped = int(self._whole < len(content))
        for line in content[: self._whole].splitlines():
            try:
                entry = json.loads(line)
                self.entries[entry["key"]] = entry["value"]
            except (ValueError, KeyError, TypeError):
                self.dropped += 1

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def __getitem__(self, key: str) -> Any:
        return self.entries[key]

    def add(self, items: Iterable[tuple[str, Any]]) -> None:
        """Append entries and flush them to disk."""
        pairs = list(items)
        self.entries.update(pairs)
        if self.path is None or not pairs:
            return
        lines = "".join(json.dumps({"key": k, "value": v}, ensure_ascii=False) + "\n" for k, v in pairs).encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("r+b" if self.path.exists() else "wb") as file:
            file.truncate(self._whole)
            file.seek(self._whole)
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        self._whole += len(lines)
