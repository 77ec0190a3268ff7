"""Suffixes as input data: from files to sets, and their controls of equal token length.

Nothing here searches for suffixes; they come from a file, as JSONL, CSV, plain text, or the result files of nanoGCG and
JailbreakBench.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PromptError
from ..records.base import Record, load_record
from ..records.labels import shortened, visible
from .files import check_text, read_file

BENIGN_KINDS = ("random_words", "random_tokens", "greeting", "style", "fluent", "benign")
COLUMNS = ("suffix", "kind", "score")


@dataclass(frozen=True)
class Suffix(Record):
    """One suffix.

    Attributes:
        kind: "adversarial", "gcg", "greeting" ...: whatever the file says; see ``is_attack``.
        text: appended to a request unchanged, so it begins with the space that separates them.
        score: what the file says about its strength, in the file's own unit; None if nothing.
    """

    kind: str
    text: str
    score: float | None = None

    @property
    def is_attack(self) -> bool:
        """Whether it is meant to stop refusals: any kind but the benign ones."""
        return self.kind not in BENIGN_KINDS

    def short(self, limit: int = 60) -> str:
        """The text as titles and lists show it, at most ``limit`` characters."""
        return shortened(visible(self.text.strip()).replace("␣", " "), limit)


@dataclass(frozen=True)
class SuffixSet(Record):
    """Suffixes in the order of their file.

    Attributes:
        name: the file's stem.
        items: the suffixes, no two with the same text.
        notes: what was dropped, in words.

    Example:
        >>> suffixes = rl.data.SuffixSet.from_rows(["please!", {"kind": "greeting", "suffix": " thank you"}])
        >>> suffixes.kinds, suffixes[0].text
        (('adversarial', 'greeting'), ' please!')
    """

    name: str
    items: tuple[Suffix, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self):
        return iter(self.items)

    def __getitem__(self, index: int) -> Suffix:
        return self.items[index]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds in order of first appearance."""
        return tuple(dict.fromkeys(item.kind for item in self.items))

    def of(self, *kinds: str) -> SuffixSet:
        """The suffixes of some kinds; PromptError where there are none."""
        kept = tuple(item for item in self.items if item.kind in kinds)
        if not kept:
            raise PromptError(f"{self.name} has no suffix of kind {' or '.join(kinds)}; it has {', '.join(self.kinds)}")
        return SuffixSet(self.name, kept, self.notes)

    @classmethod
    def load(
        cls,
        source: str | Path,
        kind: str = "adversarial",
        separator: str = " ",
        columns: Mapping[str, str] = {},
    ) -> SuffixSet:
        """Read suffixes.

        Args:
            source: .jsonl, .csv or .parquet with a column "suffix" (and "kind", "score"; others, such as replies, are
                not kept), .txt (one per line), .json: a list of such rows or of strings, nanoGCG's result
                (``best_string``; alone, in a list, or one per line), or a JailbreakBench artifact (``jailbreaks``: what
                ``prompt`` has after ``goal``).
            kind: kind of the suffixes where the file gives none.
            separator: put before a suffix that does not begin with white space.
            columns: the file's own names of "suffix", "kind" or "score", e.g. {"suffix": "adv_suffix"}.

        Raises:
            PromptError: missing, broken or empty file, or no suffix in it.
        """
        path = Path(source)
        if not path.is_file():
            raise PromptError(f"there is no suffix file {path}; give a .jsonl, .csv, .txt or .json file")
        document = read_file(path)
        if isinstance(document, dict) and "record" in document:  # a saved set
            return load_record(path, cls)
        return cls.from_rows(document, path.stem, kind, separator, str(path), columns)

    @classmethod
    def from_rows(
        cls,
        rows: Any,
        name: str = "suffixes",
        kind: str = "adversarial",
        separator: str = " ",
        where: str = "the given rows",
        columns: Mapping[str, str] = {},
    ) -> SuffixSet:
        """From strings, mappings, or one of the documents that ``load`` knows."""
        notes: list[str] = []
        if unknown := set(columns) - set(COLUMNS):
            raise PromptError(f"columns names {', '.join(sorted(unknown))}; there are only {', '.join(COLUMNS)}")
        found = _rows(rows, kind, where, notes, {name: columns.get(name, name) for name in COLUMNS})
        items: dict[str, Suffix] = {}
        for i, (what, text, score) in enumerate(found, start=1):
            which = f"suffix {i} of {where}"
            if not isinstance(text, str) or not text.strip():
                raise PromptError(f"{which} is empty; remove the row")
            check_text(text, which)
            if not isinstance(what, str):
                raise PromptError(f"{which} has a kind that is not text: {str(what)[:60]}")
            text = text if text[:1].isspace() else separator + text
            items.setdefault(text, Suffix(what, text, _number(score, which)))
        if not items:
            raise PromptError(f"{where} holds no suffix; give at least one")
        if len(items) < len(found):
            notes.append(f"{len(found) - len(items)} repeated suffix(es) dropped")
        return cls(name, tuple(items.values()), tuple(notes))

    def lengths(self, chat: Any, instruction: str) -> tuple[int, ...]:
        """Tokens of each suffix after ``instruction``; PromptError where a tokenizer merges it with the instruction's
        end."""
        spans = [chat.encode(instruction, item.text).spans.suffix for item in self.items]
        return tuple(stop - start for start, stop in spans)


def _number(value: Any, where: str) -> float | None:
    """A score; None for an empty cell."""
    try:
        number = float("nan") if value is None or value == "" else float(value)
    except (TypeError, ValueError):
        raise PromptError(f"{where} has the score {str(value)[:40]!r}, which is no number") from None
    return number if math.isfinite(number) else None


def _rows(
    document: Any, kind: str, where: str, notes: list[str], columns: Mapping[str, str]
) -> list[tuple[str, Any, Any]]:
    """(kind, text, score) of every suffix in a document; nothing else of a row is kept."""
    if isinstance(document, dict) and "jailbreaks" in document:
        return _jailbreakbench(document["jailbreaks"], where, notes)
    rows = [document] if isinstance(document, dict) else document
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise PromptError(f"{where} must be a list of suffixes, not {type(rows).__name__}")
    found: list[tuple[str, Any, Any]] = []
    for i, row in enumerate(rows):
        if isinstance(row, str):
            found.append((kind, row, None))
        elif isinstance(row, dict) and columns["suffix"] in row:
            found.append((row.get(columns["kind"]) or kind, row[columns["suffix"]], row.get(columns["score"])))
        elif isinstance(row, dict) and "best_string" in row:  # nanoGCG; its history (`strings`) is left out
            found.append(("gcg", row["best_string"], None))
        else:
            there = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            raise PromptError(
                f"row {i + 1} of {where} has {there}: a suffix row needs a field {columns['suffix']} (or best_string, "
                "as nanoGCG writes it); columns= names another"
            )
    return found


def _jailbreakbench(rows: Any, where: str, notes: list[str]) -> list[tuple[str, Any, Any]]:
    """Suffixes of an artifact: prompts that are their goal and something after it."""
    every = rows if isinstance(rows, list) else []
    texts: list[Any] = [
        [row.get(name) if isinstance(row, dict) else None for name in ("goal", "prompt")] for row in every
    ]
    pairs = [(goal, prompt) for goal, prompt in texts if isinstance(goal, str) and isinstance(prompt, str) and goal]
    behind = [prompt[len(goal) :] for goal, prompt in pairs if prompt.startswith(goal)]
    found = [("jailbreakbench", text, None) for text in behind if text.strip()]
    other = len(every) - len(found)
    if not found:
        raise PromptError(
            f"{where} holds no suffix: none of its {other} prompts is its goal with something after it (only suffix "
            "attacks, such as GCG, are)"
        )
    if other:
        notes.append(f"{other} jailbreak(s) left out: no prompt, or a prompt that is not goal + suffix")
    return found
