"""Read rows from .json, .jsonl, .csv, .tsv, .parquet and .txt files: the one reader of prompt and suffix files."""

import codecs
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import PromptError

ENDINGS = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".parquet")


def read_file(path: Path) -> Any:
    """The document in a file: rows as mappings (.csv, .tsv, .jsonl, .parquet), a document (.json), or lines (.txt).

    A JSON string may hold any character, so .jsonl and .txt are cut at newlines only, not at U+2028 and its like; a
    .json file may hold one document per line. A .csv may be separated by ; too. Where its header has a single column,
    commas belong to the text; quotes that come in no pairs belong to it everywhere. Text is UTF-8, or UTF-16 with its
    mark.

    Raises:
        PromptError: an unknown ending, or a file that does not match its ending.

    Example:
        >>> from pathlib import Path
        >>> from refusal_lens.data.files import read_file
        >>> sorted(read_file(rl.organism.instructions()["harmful"]))
        ['test', 'train', 'val']
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise PromptError(f"{path} has the ending {path.suffix!r}; use .txt, .csv, .tsv, .json, .jsonl or .parquet")
    try:
        if ending == ".parquet":
            import pyarrow.parquet  # here: most files are text

            return pyarrow.parquet.read_table(path).to_pylist()
        if ending in (".csv", ".tsv"):
            return _csv_rows(path, "," if ending == ".csv" else "\t")
        content = path.read_text(encoding_of(path))
        lines = [line for line in content.split("\n") if line.strip()]
        if ending == ".txt":
            return lines
        if ending == ".jsonl":
            return [json.loads(line) for line in lines]
        try:
            return json.loads(content)
        except ValueError:
            if len(lines) > 1 and lines[0].lstrip().startswith("{") and lines[0].rstrip().endswith("}"):
                return [json.loads(line) for line in lines]
            raise
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} is no text in UTF-8 (byte {error.start}): save it as UTF-8") from error
    except (OSError, ValueError, RecursionError, ImportError) as error:
        reason = (str(error).splitlines() or ["?"])[0]
        raise PromptError(f"{path} can't be read as {ending[1:]}: {reason}") from error


def encoding_of(path: Path) -> str:
    """UTF-16 where its byte order mark says so, else UTF-8 with or without a mark."""
    with path.open("rb") as file:
        return "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def check_text(text: str, what: str) -> None:
    """Refuse text with a lone surrogate, half of a character, which no tokenizer accepts, with a ``PromptError``."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{what} holds {text[error.start]!a}, half of a character, at position {error.start}: the text was cut or "
            "decoded wrongly; repair or remove it"
        ) from error


def _csv_rows(path: Path, delimiter: str) -> list[dict[str, str]]:
    with path.open(encoding=encoding_of(path), newline="") as file:
        lines = list(file)
    first = next((line for line in lines if line.strip()), "")
    delimiter = next((d for d in (delimiter, ";", "\t", ",") if d in first), delimiter)
    limit = csv.field_size_limit(max(csv.field_size_limit(), sum(map(len, lines))))
    try:
        header, *rows = list(_records(lines, delimiter, f"{delimiter} " in first)) or [[]]
    finally:
        csv.field_size_limit(limit)  # the process's own
    names = [name.strip() for name in header]
    lowered = [name.lower() for name in names if name]
    if twice := [name for name in lowered if lowered.count(name) > 1]:
        raise ValueError(f"two columns are called {twice[0]!r}; rename one")
    if wide := [(i, len(row)) for i, row in enumerate(rows, start=2) if len(row) > len(names)]:
        raise ValueError(
            f"row {wide[0][0]} has {wide[0][1]} columns and the header {len(names)}; put texts that hold {delimiter!r} "
            "in double quotes"
        )
    return [dict(zip(names, [*row, *[""] * (len(names) - len(row))], strict=True)) for row in rows]


def _records(lines: list[str], delimiter: str, spaced: bool) -> Iterator[list[str]]:
    """Fields of each row that is not blank. Where quotes do not pair, a row is its line, quotes included."""
    place, width = 0, 0
    while place < len(lines):
        line = lines[place].rstrip("\r\n")
        rest = (lines[k] for k in range(place, len(lines)))
        reader = csv.reader(rest, delimiter=delimiter, skipinitialspace=spaced, strict=True)
        try:
            row, used = next(reader), reader.line_num
        except csv.Error:
            row, used = line.split(delimiter), 1
        if width == 1 and len(row) > 1:  # one column: a comma that nobody quoted belongs to the text
            row, used = [line], 1
        place += used
        if any(field.strip() for field in row):
            width = width or len(row)
            yield row
