"""Suffixes as input data: from files to sets, and their controls of equal token length.

Nothing here searches for suffixes; they come from a file, as JSONL, CSV, plain text, or the result files of nanoGCG and
JailbreakBench.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PromptError
from ..records.base import Record, load_record
from .files import check_text, read_file

ATTACK_KINDS = ("adversarial", "gcg", "adaptive", "jailbreakbench")
BENIGN_KINDS = ("random_words", "greeting", "style", "fluent", "benign")


@dataclass(frozen=True)
class Suffix(Record):
    """One suffix.

    Attributes:
        kind: "adversarial", "gcg", "greeting" ...: whatever the file says; see ``is_attack``.
        text: appended to a request unchanged, so it begins with the space that separates them.
    """

    kind: str
    text: str

    @property
    def is_attack(self) -> bool:
        """Whether it is meant to stop refusals: any kind but the benign ones."""
        return self.kind not in BENIGN_KINDS


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
        """The suffixes of some kinds.

        Raises:
            PromptError: there are none.
        """
        kept = tuple(item for item in self.items if item.kind in kinds)
        if not kept:
            raise PromptError(f"{self.name} has no suffix of kind {' or '.join(kinds)}; it has {', '.join(self.kinds)}")
        return SuffixSet(self.name, kept, self.notes)

    @classmethod
    def load(cls, source: str | Path, kind: str = "adversarial", separator: str = " ") -> SuffixSet:
        """Read suffixes.

        Args:
            source: .jsonl or .csv with a column "suffix" (and "kind"), .txt (one per line), .json: a list of such rows
                or of strings, nanoGCG's result (``best_string``; alone, in a list, or one per line), or a
                JailbreakBench artifact (``jailbreaks``: what ``prompt`` has after ``goal``).
            kind: kind of the suffixes where the file gives none.
            separator: put before a suffix that does not begin with white space.

        Raises:
            PromptError: missing, broken or empty file, or no suffix in it.
        """
        path = Path(source)
        if not path.is_file():
            raise PromptError(f"there is no suffix file {path}; give a .jsonl, .csv, .txt or .json file")
        document = read_file(path)
        if isinstance(document, dict) and "record" in document:  # a saved set
            return load_record(path, cls)
        return cls.from_rows(document, path.stem, kind, separator, str(path))

    @classmethod
    def from_rows(
        cls,
        rows: Any,
        name: str = "suffixes",
        kind: str = "adversarial",
        separator: str = " ",
        where: str = "the given rows",
    ) -> SuffixSet:
        """From strings, mappings, or one of the documents that ``load`` knows."""
        notes: list[str] = []
        found = _rows(rows, kind, where, notes)
        items: dict[str, Suffix] = {}
        for i, (what, text) in enumerate(found):
            if not isinstance(text, str) or not text.strip():
                raise PromptError(f"suffix {i + 1} of {where} is empty; remove the row")
            check_text(text, f"suffix {i + 1} of {where}")
            if not isinstance(what, str):
                raise PromptError(f"suffix {i + 1} of {where} has a kind that is not text: {str(what)[:60]}")
            text = text if text[:1].isspace() else separator + text
            items.setdefault(text, Suffix(what, text))
        if not items:
            raise PromptError(f"{where} holds no suffix; give at least one")
        if len(items) < len(found):
            notes.append(f"{len(found) - len(items)} repeated suffix(es) dropped")
        return cls(name, tuple(items.values()), tuple(notes))

    def lengths(self, chat: Any, instruction: str) -> tuple[int, ...]:
        """Tokens of each suffix after ``instruction``.

        Raises:
            PromptError: the tokenizer merges a suffix with the instruction's end.
        """
        spans = [chat.encode(instruction, item.text).spans.suffix for item in self.items]
        return tuple(stop - start for start, stop in spans)


# -- files ----------------------------------------------------------------------------------------------------------


def _rows(document: Any, kind: str, where: str, notes: list[str]) -> list[tuple[str, Any]]:
    """(kind, text) of every suffix in a document."""
    if isinstance(document, dict) and "jailbreaks" in document:
        return _jailbreakbench(document["jailbreaks"], where, notes)
    rows = [document] if isinstance(document, dict) else document
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise PromptError(f"{where} must be a list of suffixes, not {type(rows).__name__}")
    found = []
    for i, row in enumerate(rows):
        if isinstance(row, str):
            found.append((kind, row))
        elif isinstance(row, dict) and "best_string" in row:  # nanoGCG; its history (`strings`) is left out
            found.append(("gcg", row["best_string"]))
        elif isinstance(row, dict) and "suffix" in row:
            found.append((row.get("kind") or kind, row["suffix"]))
        else:
            columns = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            raise PromptError(
                f"row {i + 1} of {where} has {columns}: a suffix row needs a field suffix (or best_string, as nanoGCG "
                "writes it)"
            )
    return found


def _jailbreakbench(rows: Any, where: str, notes: list[str]) -> list[tuple[str, Any]]:
    """Suffixes of an artifact: prompts that are their goal and something after it."""
    found, other = [], 0
    for row in rows if isinstance(rows, list) else []:
        goal: Any
        prompt: Any
        goal, prompt = (row.get(name) if isinstance(row, dict) else None for name in ("goal", "prompt"))
        texts = isinstance(goal, str) and isinstance(prompt, str)
        behind = prompt[len(goal) :] if texts and goal and prompt.startswith(goal) else ""
        if behind.strip():
            found.append(("jailbreakbench", behind))
        else:
            other += 1
    if not found:
        raise PromptError(
            f"{where} holds no suffix: none of its {other} prompts is its goal with something after it (only suffix "
            "attacks, such as GCG, are)"
        )
    if other:
        notes.append(f"{other} jailbreak(s) left out: no prompt, or a prompt that is not goal + suffix")
    return found
