"""Prompts: from files or data sets to disjoint train, validation and test splits."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import pandas as pd

from ..errors import PromptError
from ..records.base import Record
from .paper import SIZES

SPLITS = ("train", "val", "test")
TEXT_COLUMNS = ("instruction", "prompt", "goal", "behavior", "request", "question", "text")


@dataclass(frozen=True)
class Preset:
    """A data set by the field's name: where `datasets` finds it and which column holds the request."""

    path: str
    config: str | None
    split: str
    column: str
    empty_column: str | None = None  # keep only rows where this column is empty


PRESETS = {
    "advbench": Preset("walledai/AdvBench", None, "train", "prompt"),
    "jailbreakbench": Preset("JailbreakBench/JBB-Behaviors", "behaviors", "harmful", "Goal"),
    "jailbreakbench-benign": Preset("JailbreakBench/JBB-Behaviors", "behaviors", "benign", "Goal"),
    "alpaca": Preset("tatsu-lab/alpaca", None, "train", "instruction", empty_column="input"),
}


@dataclass(frozen=True)
class Prompts(Record, Sequence):
    """A sequence of requests, as the user would type them (no chat template)."""

    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Prompts: ...
    def __getitem__(self, index: int | slice) -> str | Prompts:
        return Prompts(self.texts[index]) if isinstance(index, slice) else self.texts[index]

    def sample(self, n: int, seed: int = 0) -> Prompts:
        """``n`` of them drawn without replacement (all if there are fewer), in a seeded order."""
        order = random.Random(seed).sample(range(len(self)), min(n, len(self)))
        return Prompts(tuple(self.texts[i] for i in order))


@dataclass(frozen=True)
class PromptSet(Record):
    """Requests of one kind in three disjoint splits.

    Attributes:
        name: e.g. "harmful".
        train, val, test: the splits (paper: extraction, selection, report).
        notes: what was dropped or changed on the way, in words.
    """

    name: str
    train: Prompts
    val: Prompts
    test: Prompts
    notes: tuple[str, ...] = ()

    @classmethod
    def load(
        cls, source: str | Path, name: str | None = None, sizes: Sequence[int] = SIZES, seed: int = 0
    ) -> PromptSet:
        """Read prompts and split them.

        Args:
            source: a .txt (one a line), .csv, .json or .jsonl file; a JSON object with train, val and test; a
                stem whose ``_train``, ``_val`` and ``_test`` files exist (``data/harmful`` for
                ``data/harmful_train.json`` ...); a preset (``advbench``, ``jailbreakbench``, ``alpaca``); or a
                `datasets` id as ``id``, ``id:column`` or ``id:config:split:column``.
            name: label of the set; the file's stem if not given.
            sizes: prompts wanted in train, val and test. Fewer are taken, in proportion, when there are fewer.
            seed: of the shuffle.

        Raises:
            PromptError: missing or empty source, no valid row, or too few distinct prompts for three splits.
        """
        text, path = str(source), Path(source)
        label = name or (path.name.split(".")[0] if path.suffix else text.split("/")[-1])
        if path.is_file():
            document = _read_file(path)
        elif parts := _split_files(path):
            document = {split: _read_file(file) for split, file in parts.items()}
        elif text.lower() in PRESETS:
            document = _read_preset(PRESETS[text.lower()])
        elif "/" in text and not path.suffix and not path.is_absolute() and not text.startswith("."):
            document = _read_dataset(text)
        else:
            raise PromptError(
                f"no prompts at {text!r}: give a .txt, .csv, .json or .jsonl file, a stem with _train, _val and "
                f"_test files, a `datasets` id, or one of {', '.join(PRESETS)}"
            )
        return cls.from_rows(document, label, sizes, seed, where=text)

    @classmethod
    def from_rows(
        cls,
        document: Sequence[Any] | dict[str, Sequence[Any]],
        name: str,
        sizes: Sequence[int] = SIZES,
        seed: int = 0,
        where: str = "the given rows",
    ) -> PromptSet:
        """Split rows (strings, or mappings with a text column), or a mapping of three splits of rows."""
        notes: list[str] = []
        seen: dict[str, str] = {}
        if isinstance(document, dict):
            missing = [split for split in SPLITS if split not in document]
            if missing:
                raise PromptError(f"{where} has no {' or '.join(missing)} split; give train, val and test")
            pools = {}
            # The test split is cleaned first: an overlap costs a training prompt, never a test prompt.
            for split in reversed(SPLITS):
                pools[split] = _distinct(_texts(document[split], f"{where} ({split})"), split, seen, notes)
            chosen = {s: Prompts(tuple(pools[s])).sample(n, seed) for s, n in zip(SPLITS, sizes, strict=True)}
        else:
            pool = _distinct(_texts(document, where), "all", seen, notes)
            wanted = _fit(sizes, len(pool), where, notes)
            shuffled = Prompts(tuple(pool)).sample(len(pool), seed).texts
            ends = [sum(wanted[: i + 1]) for i in range(3)]
            chosen = {s: Prompts(shuffled[end - n : end]) for s, n, end in zip(SPLITS, wanted, ends, strict=True)}
        for split, prompts in chosen.items():
            if not prompts:
                raise PromptError(f"{where}: the {split} split is empty; give more distinct prompts")
        return cls(name, chosen["train"], chosen["val"], chosen["test"], tuple(notes))


def _split_files(stem: Path) -> dict[str, Path] | None:
    if not stem.parent.is_dir():
        return None
    found = {s: sorted(stem.parent.glob(f"{stem.name}_{s}.*")) for s in SPLITS}
    return {s: files[0] for s, files in found.items()} if all(found.values()) else None


def _read_file(path: Path) -> Any:
    try:
        if path.suffix == ".csv":
            return pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
        content = path.read_text("utf-8-sig")
        if path.suffix == ".json":
            return json.loads(content)
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in content.splitlines() if line.strip()]
        if path.suffix == ".txt":
            return content.splitlines()
    except (OSError, ValueError, RecursionError) as error:
        raise PromptError(f"{path} can't be read as {path.suffix[1:]}: {str(error).splitlines()[0]}") from error
    raise PromptError(f"{path} has the ending {path.suffix!r}; use .txt, .csv, .json or .jsonl")


def _read_preset(preset: Preset) -> list[str]:
    rows = _load_dataset(preset.path, preset.config, preset.split)
    return [r[preset.column] for r in rows if not (preset.empty_column and r[preset.empty_column])]


def _read_dataset(spec: str) -> list[Any]:
    path, *rest = spec.split(":")
    if len(rest) not in (0, 1, 3):
        raise PromptError(f"{spec!r}: write a data set as id, id:column or id:config:split:column")
    config, split = (rest[0] or None, rest[1]) if len(rest) == 3 else (None, "train")
    rows = _load_dataset(path, config, split)
    return [row[rest[-1]] for row in rows] if rest else list(rows)


def _load_dataset(path: str, config: str | None, split: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(path, config, split=split)
    except Exception as error:  # datasets raises many kinds: offline, gated, no such split
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PromptError(f"data set {path!r} can't be loaded ({reason}); give a local file instead") from error


def _texts(rows: Any, where: str) -> list[str]:
    """The request of every valid row, in order."""
    if isinstance(rows, dict) or not isinstance(rows, Sequence) or isinstance(rows, str):
        raise PromptError(f"{where} must be a list of prompts, not {type(rows).__name__}")
    if not rows:
        raise PromptError(f"{where} is empty; give at least one prompt a split")
    column = None
    if isinstance(rows[0], dict):
        by_lower = {str(key).lower(): key for key in rows[0]}
        column = next((by_lower[name] for name in TEXT_COLUMNS if name in by_lower), None)
        if column is None:
            raise PromptError(
                f"{where} has the columns {', '.join(map(str, rows[0])) or '(none)'}; one must be called "
                f"{', '.join(TEXT_COLUMNS[:-1])} or {TEXT_COLUMNS[-1]}"
            )
    values = [row.get(column) if isinstance(row, dict) else row for row in rows]
    texts = [value.strip() for value in values if isinstance(value, str) and value.strip()]
    if not texts:
        raise PromptError(f"{where} has no valid row: every prompt is empty or not text")
    return texts


def _distinct(texts: list[str], split: str, seen: dict[str, str], notes: list[str]) -> list[str]:
    """Texts not met before; what is dropped is noted."""
    kept: list[str] = []
    within, across = 0, dict[str, int]()
    for text in texts:
        key = " ".join(text.casefold().split())
        if key not in seen:
            seen[key] = split
            kept.append(text)
        elif seen[key] == split:
            within += 1
        else:
            across[seen[key]] = across.get(seen[key], 0) + 1
    if within:
        notes.append(f"{within} duplicate{'s' * (within > 1)} dropped" + ("" if split == "all" else f" from {split}"))
    for other, count in across.items():
        notes.append(f"{count} prompt{'s' * (count > 1)} of {split} dropped: also in {other}")
    return kept


def _fit(sizes: Sequence[int], available: int, where: str, notes: list[str]) -> list[int]:
    """``sizes`` scaled down to ``available``, each at least one."""
    if sum(sizes) <= available:
        return list(sizes)
    if available < 3:
        raise PromptError(f"{where} has {available} distinct prompt(s); three splits need at least 3")
    scaled = [max(1, int(size * available / sum(sizes))) for size in sizes]
    while sum(scaled) > available:
        scaled[scaled.index(max(scaled))] -= 1
    notes.append(f"only {available} distinct prompts: splits of {scaled} instead of {list(sizes)}")
    return scaled
