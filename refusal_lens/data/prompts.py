"""Prompts: from files or data sets to disjoint train, validation and test splits."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, overload

import pandas as pd

from ..errors import PromptError
from ..records.base import Record, load_record
from .conversation import Conversation
from .files import read_file
from .organism import instructions
from .paper import SIZES
from .rows import checked_sizes, distinct, fitted, folded, texts_of

SPLITS = ("train", "val", "test")
PARTS = (*SPLITS, "spare_train", "spare_val")


@dataclass(frozen=True)
class Preset:
    """A well-known data set: where `datasets` finds it and which column holds the request."""

    path: str
    config: str | None
    split: str
    column: str
    empty_column: str | None = None  # keep only rows where this column is empty
    only: tuple[str, str] | None = None  # keep only rows where this column has this value


PRESETS = {
    "advbench": Preset("walledai/AdvBench", None, "train", "prompt"),
    "jailbreakbench": Preset("JailbreakBench/JBB-Behaviors", "behaviors", "harmful", "Goal"),
    "jailbreakbench-benign": Preset("JailbreakBench/JBB-Behaviors", "behaviors", "benign", "Goal"),
    "alpaca": Preset("tatsu-lab/alpaca", None, "train", "instruction", empty_column="input"),
    "xstest": Preset("walledai/XSTest", None, "test", "prompt", only=("label", "safe")),
    "xstest-unsafe": Preset("walledai/XSTest", None, "test", "prompt", only=("label", "unsafe")),
    "or-bench": Preset("bench-llm/or-bench", "or-bench-hard-1k", "train", "prompt"),
    "or-bench-toxic": Preset("bench-llm/or-bench", "or-bench-toxic", "train", "prompt"),
}


def as_prompts(prompts: Any, split: str = "") -> list[str]:
    """Turn anything that holds requests into a list; a string is one prompt, and so is a list of messages.

    Args:
        prompts: a string, a list of strings or of conversations, ``Prompts``, or the messages of one conversation.
        split: which split of a ``PromptSet`` to take ("train" for extraction); "" refuses a set.

    Raises:
        PromptError: a ``PromptSet`` (its split must be named), nothing, or something that is not text.

    Example:
        >>> from refusal_lens.data.prompts import as_prompts
        >>> as_prompts("Hello")
        ['Hello']
    """
    if isinstance(prompts, str):
        return [prompts]
    if split and isinstance(prompts, PromptSet):
        return list(getattr(prompts, split))
    if isinstance(prompts, (PromptSet, PromptPair)):
        what = "harmful.test" if isinstance(prompts, PromptPair) else "test"
        raise PromptError(f"{type(prompts).__name__} holds several splits of prompts: name one, for example .{what}")
    if isinstance(prompts, Mapping) or not isinstance(prompts, Sequence):
        raise PromptError(f"prompts are a string or a list of strings, not {type(prompts).__name__}")
    items = list(prompts)
    if items and isinstance(items[0], Mapping):
        return [Conversation(items)]
    items = [item if isinstance(item, str) or not isinstance(item, Sequence) else Conversation(item) for item in items]
    if odd := [item for item in items if not isinstance(item, str)]:
        raise PromptError(f"a prompt is text or a list of messages, not {type(odd[0]).__name__}")
    return items


def as_prompt_sets(sets: Any) -> dict[str, list[str]]:
    """Named sets of requests: a mapping of names to whatever ``as_prompts`` takes, or one such set ("prompts")."""
    named = sets if isinstance(sets, Mapping) and "content" not in sets else {"prompts": sets}
    return {str(name): as_prompts(prompts) for name, prompts in named.items()}


def as_suffixes(suffixes: Any, n: int) -> list[str]:
    """Give one suffix per prompt: a string goes to all of them, None is no suffix.

    Args:
        suffixes: one per prompt (with its leading space), one string for all, or None.

    Raises:
        PromptError: the numbers of suffixes and prompts differ.
    """
    every = [suffixes or ""] * n if suffixes is None or isinstance(suffixes, str) else list(suffixes)
    if len(every) != n:
        raise PromptError(f"{len(every)} suffixes for {n} prompts: give one per prompt, or one for all")
    return every


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

    def __repr__(self) -> str:
        return f"Prompts({len(self)}: {self.texts[0][:60]!r}, ...)" if self.texts else "Prompts(0)"

    def to_frame(self) -> pd.DataFrame:
        """One row per prompt."""
        return pd.DataFrame({"prompt": self.texts})

    def sample(self, n: int, seed: int = 0) -> Prompts:
        """Draw ``n`` of them without replacement (all if there are fewer), in a seeded order."""
        order = random.Random(seed).sample(range(len(self)), min(n, len(self)))
        return Prompts(tuple(self.texts[i] for i in order))


@dataclass(frozen=True)
class PromptSet(Record):
    """Requests of one kind in three disjoint splits.

    Attributes:
        name: e.g. "harmful".
        train, val, test: the splits (paper: extraction, selection, report).
        notes: what was dropped or changed on the way, in words.
        spare_train, spare_val: unused prompts, in random order, that may replace dropped ones of train and of val; none
            is in test. Both are the same prompts where the source has no splits.
    """

    name: str
    train: Prompts
    val: Prompts
    test: Prompts
    notes: tuple[str, ...] = ()
    spare_train: Prompts = Prompts(())
    spare_val: Prompts = Prompts(())

    def __repr__(self) -> str:
        return f"PromptSet({self.name}: {', '.join(f'{len(getattr(self, split))} {split}' for split in SPLITS)})"

    def to_frame(self) -> pd.DataFrame:
        """One row per prompt, with its split."""
        rows = [(split, text) for split in SPLITS for text in getattr(self, split)]
        return pd.DataFrame(rows, columns=["split", "prompt"])

    @classmethod
    def load(cls, source: Source, name: str | None = None, sizes: Sequence[int] = SIZES, seed: int = 0) -> PromptSet:
        """Read prompts and split them.

        Args:
            source: a .txt (one per line), .csv, .json or .jsonl file; a JSON object with train, val and test; a
                stem whose ``_train``, ``_val`` and ``_test`` files exist (``data/harmful`` for
                ``data/harmful_train.json`` ...); a preset (``advbench``, ``jailbreakbench``, ``alpaca``); or a
                `datasets` id as ``id``, ``id:column`` or ``id:config:split:column``; a list of requests; or the file
                of a saved ``PromptSet``, which keeps its splits, cut to sizes other than the default.
            name: label of the set; the file's stem if not given.
            sizes: number of prompts for train, val and test; scaled down in proportion if there are fewer.
            seed: of the shuffle.

        Raises:
            PromptError: missing or empty source, no valid row, or too few distinct prompts for three splits.
        """
        if not isinstance(source, (str, Path)):
            return cls.from_rows(source, name or "prompts", sizes, seed)
        text, path = str(source), Path(source)
        label = name or (path.name.split(".")[0] if path.suffix else text.split("/")[-1])
        if path.is_file():
            document = read_file(path)
            if isinstance(document, dict) and "record" in document:
                found, wanted = load_record(path, cls), zip(SPLITS, checked_sizes(sizes), strict=True)
                cut = {} if tuple(sizes) == SIZES else {split: getattr(found, split)[:n] for split, n in wanted}
                return replace(found, name=name or found.name, **cut)
        elif parts := _split_files(path):
            document = {split: read_file(file) for split, file in parts.items()}
        elif text.lower() in PRESETS:
            document = read_preset(PRESETS[text.lower()])
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
        document: Sequence[Any] | Mapping[str, Sequence[Any]],
        name: str,
        sizes: Sequence[int] = SIZES,
        seed: int = 0,
        where: str = "the given rows",
    ) -> PromptSet:
        """Split rows (strings, or mappings with a text column), or a mapping of three splits of rows."""
        notes: list[str] = []
        seen: dict[str, str] = {}
        sizes = checked_sizes(sizes)
        if isinstance(document, Mapping):
            if missing := [split for split in SPLITS if split not in document]:
                raise PromptError(f"{where} has no {' or '.join(missing)} split; give train, val and test")
            # The test split is cleaned first: an overlap costs a training prompt, never a test prompt.
            texts = {split: (document[split], f"{where} ({split})", notes) for split in reversed(SPLITS)}
            pools = {split: distinct(texts_of(*rows), split, seen, notes) for split, rows in texts.items()}
            chosen = {s: Prompts(tuple(pools[s])).sample(n, seed) for s, n in zip(SPLITS, sizes, strict=True)}
            train, *held_out = (_others(pools[s], set(chosen[s]), seed) for s in SPLITS)
            spare = train, sum(held_out, ())
            if (taken := [len(chosen[split]) for split in SPLITS]) != list(sizes):
                notes.append(f"fewer distinct prompts than wanted: splits of {taken} instead of {list(sizes)}")
        else:
            pool = distinct(texts_of(document, where, notes), "all", seen, notes)
            wanted = fitted(sizes, len(pool), where, notes)
            shuffled = Prompts(tuple(pool)).sample(len(pool), seed).texts
            ends = [sum(wanted[: i + 1]) for i in range(3)]
            chosen = {s: Prompts(shuffled[end - n : end]) for s, n, end in zip(SPLITS, wanted, ends, strict=True)}
            spare = shuffled[ends[-1] :], shuffled[ends[-1] :]
        if empty := [split for split, prompts in chosen.items() if not prompts]:
            raise PromptError(f"{where}: the {empty[0]} split is empty; give more distinct prompts")
        return cls(name, chosen["train"], chosen["val"], chosen["test"], tuple(notes), *map(Prompts, spare))


@dataclass(frozen=True)
class PromptPair(Record):
    """Harmful and harmless requests, each in three splits.

    Requests that both have are left out of the harmless ones, and noted there.

    Raises:
        PromptError: a harmless split holds nothing else.
    """

    harmful: PromptSet
    harmless: PromptSet

    def __post_init__(self) -> None:
        harmful = {folded(text) for split in PARTS for text in getattr(self.harmful, split)}
        parts: dict[str, Any] = {split: getattr(self.harmless, split) for split in PARTS}
        left = {split: [text for text in texts if folded(text) not in harmful] for split, texts in parts.items()}
        kept: dict[str, Any] = {split: Prompts(tuple(texts)) for split, texts in left.items()}
        lost = sum(len(parts[split]) - len(kept[split]) for split in SPLITS)
        if emptied := [split for split in SPLITS if parts[split] and not kept[split]]:
            raise PromptError(
                f"every harmless {emptied[0]} prompt is a harmful prompt, too: give other prompts for one of the two"
            )
        if kept != parts:
            note = f"{lost} harmless prompt{'s' * (lost != 1)} dropped: also harmful"
            notes = (*self.harmless.notes, *[note] * bool(lost))
            object.__setattr__(self, "harmless", replace(self.harmless, notes=notes, **kept))

    def __repr__(self) -> str:
        return f"PromptPair({self.harmful!r}, {self.harmless!r})"

    def to_frame(self) -> pd.DataFrame:
        """One row per prompt, with its set and split."""
        return pd.concat([found.to_frame().assign(set=found.name) for found in self], ignore_index=True)

    def __iter__(self) -> Iterator[PromptSet]:
        return iter((self.harmful, self.harmless))


Source = str | Path | Sequence[Any] | Mapping[str, Sequence[Any]]  # of a ``PromptSet``


def check_pair(data: Any) -> None:
    """Refuse anything but harmful and harmless prompts in splits with a ``PromptError``."""
    if not isinstance(data, PromptPair):
        raise PromptError(
            f"data is {type(data).__name__}: give harmful and harmless prompts in splits, from "
            "rl.load_prompts(harmful, harmless)"
        )


# Whatever is taken as prompts; ``as_prompts`` makes a list of it, and says of a ``PromptSet`` that it needs a split.
PromptsLike = str | Sequence[str] | Sequence[Mapping[str, str]] | PromptSet | PromptPair


def load_prompts(
    harmful: Source = "organism",
    harmless: Source | None = None,
    *,
    sizes: Sequence[int] = SIZES,
    seed: int = 0,
) -> PromptPair:
    """Read harmful and harmless requests and split each into train, val and test.

    Args:
        harmful, harmless: as in ``PromptSet.load``; "organism" for the embedded model's own requests of both kinds.
        sizes: number of prompts for train, val and test.
        seed: of the shuffle.

    Raises:
        PromptError: only one of the two, or a source that can't be read.

    Example:
        >>> data = rl.load_prompts("organism", sizes=(8, 4, 4))
        >>> len(data.harmful.train), len(data.harmless.test)
        (8, 4)
    """
    if str(harmful) == "organism" and harmless is None:
        harmful, harmless = instructions().values()
    if harmless is None:
        raise PromptError(f"give harmless prompts along with {str(harmful)[:60]!r}: load_prompts(harmful, harmless)")
    sources = (("harmful", harmful), ("harmless", harmless))
    return PromptPair(*(PromptSet.load(source, name, sizes, seed) for name, source in sources))


def prompt_groups(source: str | Path, column: str = "category", skip: Sequence[str] = ()) -> dict[str, tuple[str, ...]]:
    """Read requests grouped by a column, from all splits of a file; largest group first.

    Args:
        source: a file as in ``PromptSet.load``, whose rows have the column.
        skip: requests to leave out, such as those held out for a test.

    Raises:
        PromptError: no row has the column.

    Example:
        >>> groups = rl.data.prompt_groups(rl.organism.instructions()["harmful"])
        >>> next(iter(groups)), len(groups["people"])
        ('people', 106)
    """
    document, seen, rows = read_file(Path(source)), dict.fromkeys(map(folded, skip), ""), dict[str, list[Any]]()
    for row in chain(*document.values()) if isinstance(document, dict) else document:
        if isinstance(row, dict) and row.get(column) not in (None, ""):
            rows.setdefault(str(row[column]), []).append(row)
    if not rows:
        raise PromptError(f"no row of {source} has the column {column!r} to group by: name one that they have")
    groups = {name: distinct(texts_of(some, f"{source} ({name})", []), name, seen, []) for name, some in rows.items()}
    return dict(sorted(((n, tuple(g)) for n, g in groups.items()), key=lambda item: -len(item[1])))


def _split_files(stem: Path) -> dict[str, Path] | None:
    if not stem.parent.is_dir():
        return None
    found = {s: sorted(stem.parent.glob(f"{stem.name}_{s}.*")) for s in SPLITS}
    return {s: files[0] for s, files in found.items()} if all(found.values()) else None


def read_preset(preset: Preset) -> list[str]:
    """The requests of a well-known data set."""
    rows = _load_dataset(preset.path, preset.config, preset.split)
    if preset.only is not None:
        rows = [row for row in rows if row[preset.only[0]] == preset.only[1]]
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


def _others(texts: Sequence[str], taken: set[str], seed: int) -> tuple[str, ...]:
    left = tuple(text for text in texts if text not in taken)
    return Prompts(left).sample(len(left), seed).texts
