"""Read rows from .json, .jsonl, .csv, .tsv, .parquet and .txt files: the one reader of prompt and suffix files."""

import csv
import json
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import PromptError


def read_file(path: Path) -> Any:
    """The document in a file: rows as mappings (.csv, .tsv, .jsonl, .parquet), a document (.json), or lines (.txt).

    A JSON string may hold any character, so .jsonl and .txt are cut at newlines only, not at U+2028 and its like; a
    .json file may hold one document per line. A .csv whose header has a single column holds one text per line, commas
    included.

    Raises:
        PromptError: an unknown ending, or a file that does not match its ending.

    Example:
        >>> from pathlib import Path
        >>> from refusal_lens.data.files import read_file
        >>> sorted(read_file(rl.organism.instructions()["harmful"]))
        ['test', 'train', 'val']
    """
    ending = path.suffix.lower()
    try:
        if ending in (".csv", ".tsv"):
            return _csv_rows(path, "," if ending == ".csv" else "\t")
        if ending == ".parquet":
            return pd.read_parquet(path).to_dict("records")
        content = path.read_text("utf-8-sig")
        lines = [line for line in content.replace("\r\n", "\n").split("\n") if line.strip()]
        if ending == ".json":
            try:
                return json.loads(content)
            except ValueError:
                if len(lines) > 1 and lines[0].lstrip().startswith("{") and lines[0].rstrip().endswith("}"):
                    return [json.loads(line) for line in lines]
                raise
        if ending == ".jsonl":
            return [json.loads(line) for line in lines]
        if ending == ".txt":
            return lines
    except (OSError, ValueError, RecursionError, ImportError, csv.Error) as error:
        reason = (str(error).splitlines() or ["?"])[0]
        raise PromptError(f"{path} can't be read as {ending[1:]}: {reason}") from error
    raise PromptError(f"{path} has the ending {path.suffix!r}; use .txt, .csv, .tsv, .json, .jsonl or .parquet")


def check_text(text: str, what: str) -> None:
    """Refuse text that is not Unicode.

    Raises:
        PromptError: a lone surrogate, half of a character, which no tokenizer accepts.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{what} holds {text[error.start]!a}, half of a character, at position {error.start}: the text was cut or "
            "decoded wrongly; repair or remove it"
        ) from error


def _csv_rows(path: Path, delimiter: str) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.reader(file, delimiter=delimiter) if row]
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
