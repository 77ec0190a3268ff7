"""Read rows from .json, .jsonl, .csv and .txt files: the one reader of prompt and suffix files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from ..errors import PromptError


def read_file(path: Path) -> Any:
    """The document in a file: rows as mappings (.csv, .jsonl), a document (.json), or lines (.txt).

    A JSON string may hold any character, so .jsonl and .txt are cut at newlines only, not at U+2028 and its like. A
    .csv whose header has a single column holds one text per line, commas included.

    Raises:
        PromptError: an ending that is not read, or a file that does not fit its ending.

    Example:
        >>> from pathlib import Path
        >>> from refusal_lens.data.files import read_file
        >>> sorted(read_file(rl.organism.instructions()["harmful"]))
        ['test', 'train', 'val']
    """
    try:
        if path.suffix == ".csv":
            return _csv_rows(path)
        content = path.read_text("utf-8-sig")
        if path.suffix == ".json":
            return json.loads(content)
        lines = [line for line in content.replace("\r\n", "\n").split("\n") if line.strip()]
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in lines]
        if path.suffix == ".txt":
            return lines
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        reason = (str(error).splitlines() or ["?"])[0]
        raise PromptError(f"{path} can't be read as {path.suffix[1:]}: {reason}") from error
    raise PromptError(f"{path} has the ending {path.suffix!r}; use .txt, .csv, .json or .jsonl")


def _csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.reader(file) if row]
        if not rows:
            return []
        if len(rows[0]) > 1:
            wide = next((i for i, row in enumerate(rows) if len(row) > len(rows[0])), None)
            if wide is not None:
                raise ValueError(f"row {wide + 1} has {len(rows[wide])} columns and the header {len(rows[0])}")
            return [dict(zip(rows[0], [*row, *[""] * (len(rows[0]) - len(row))], strict=True)) for row in rows[1:]]
        # One column: a comma that nobody quoted belongs to the text.
        file.seek(0)
        lines = file.read().lstrip("\ufeff").splitlines()
    if max(len(row) for row in rows) == 1:
        return [{rows[0][0]: row[0]} for row in rows[1:]]
    return [{rows[0][0]: line.strip()} for line in lines[1:] if line.strip()]
