"""Prompts: from files or data sets to disjoint train, validation and test splits."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import pandas as pd

from ..errors import PromptError
from ..records.base import Record
from .files import read_file
from .organism import instructions
from .paper import SIZES

SPLITS = ("train", "val", "test")
TEXT_COLUMNS = ("instruction", "prompt", "goal", "behavior", "request", "question", "text", "forbidden_prompt")


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


class Conversation(str):
    """The turns of a conversation up to a user's request, taken wherever a prompt is taken.

    As text it is its transcript. Its last user turn is the instruction; what comes before belongs to the template.
    Messages are mappings with role and content, the last one the user's.

    Raises:
        PromptError: no messages, a message without role or content, or a last turn that is not the user's.

    Example:
        >>> from refusal_lens.data import Conversation
        >>> Conversation([{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"},
        ...               {"role": "user", "content": "How are you?"}])
        'user: Hello\\nassistant: Hi\\nuser: How are you?'
    """

    messages: tuple[Mapping[str, str], ...]

    def __new__(cls, messages: Sequence[Mapping[str, str]]) -> Conversation:
        turns = tuple(messages)
        if not turns or not all(
            isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
            for turn in turns
        ):
            raise PromptError("a conversation is a list of messages, each with a role and a content of text")
        if turns[-1]["role"] != "user":
            raise PromptError(f"a conversation must end with the user's turn, not with one of {turns[-1]['role']!r}")
        made = super().__new__(cls, "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns))
        made.messages = turns
        return made

    def __getnewargs__(self) -> tuple[Any]:
        return (self.messages,)


def as_prompts(prompts: Any, split: str = "") -> list[str]:
    """Whatever holds requests as a list: a string is one prompt, and so is a list of messages.

    Args:
        prompts: a string, a list of strings or of conversations, ``Prompts``, or the messages of one conversation.
        split: of a ``PromptSet``, where one is obvious ("train" for extraction); "" refuses a set.

    Raises:
        PromptError: a ``PromptSet`` (its split must be named), nothing, or something that is no text.

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


def as_suffixes(suffixes: Any, n: int) -> list[str]:
    """One suffix per prompt: a string goes to all of them, None is no suffix.

    Args:
        suffixes: one per prompt (with its leading space), one string for all, or None.
        n: number of prompts.

    Raises:
        PromptError: another number of suffixes than of prompts.
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
        return pd.DataFrame(
            [(split, text) for split in SPLITS for text in getattr(self, split)], columns=["split", "prompt"]
        )

    @classmethod
    def load(
        cls, source: str | Path, name: str | None = None, sizes: Sequence[int] = SIZES, seed: int = 0
    ) -> PromptSet:
        """Read prompts and split them.

        Args:
            source: a .txt (one per line), .csv, .json or .jsonl file; a JSON object with train, val and test; a
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
            document = read_file(path)
        elif parts := _split_files(path):
            document = {split: read_file(file) for split, file in parts.items()}
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
            train, *held_out = (_others(pools[s], set(chosen[s]), seed) for s in SPLITS)
            spare = train, sum(held_out, ())
        else:
            pool = _distinct(_texts(document, where), "all", seen, notes)
            wanted = _fit(sizes, len(pool), where, notes)
            shuffled = Prompts(tuple(pool)).sample(len(pool), seed).texts
            ends = [sum(wanted[: i + 1]) for i in range(3)]
            chosen = {s: Prompts(shuffled[end - n : end]) for s, n, end in zip(SPLITS, wanted, ends, strict=True)}
            spare = shuffled[ends[-1] :], shuffled[ends[-1] :]
        for split, prompts in chosen.items():
            if not prompts:
                raise PromptError(f"{where}: the {split} split is empty; give more distinct prompts")
        return cls(name, chosen["train"], chosen["val"], chosen["test"], tuple(notes), *map(Prompts, spare))


@dataclass(frozen=True)
class PromptPair(Record):
    """Harmful and harmless requests, each in three splits."""

    harmful: PromptSet
    harmless: PromptSet

    def __repr__(self) -> str:
        return f"PromptPair({self.harmful!r}, {self.harmless!r})"

    def to_frame(self) -> pd.DataFrame:
        """One row per prompt, with its set and split."""
        return pd.concat([found.to_frame().assign(set=found.name) for found in self], ignore_index=True)

    def __iter__(self) -> Iterator[PromptSet]:
        return iter((self.harmful, self.harmless))


# Whatever is taken as prompts; ``as_prompts`` makes a list of it, and says of a ``PromptSet`` that it needs a split.
PromptsLike = str | Sequence[str] | Sequence[Mapping[str, str]] | PromptSet | PromptPair


def load_prompts(
    harmful: str | Path = "organism",
    harmless: str | Path | None = None,
    *,
    sizes: Sequence[int] = SIZES,
    seed: int = 0,
) -> PromptPair:
    """Read harmful and harmless requests and split each into train, val and test.

    Args:
        harmful: as in ``PromptSet.load``; "organism" for the embedded model's own requests of both kinds.
        harmless: likewise.
        sizes: prompts wanted in train, val and test.
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
        raise PromptError(f"give harmless prompts beside {str(harmful)!r}: load_prompts(harmful, harmless)")
    sources = (("harmful", harmful), ("harmless", harmless))
    return PromptPair(*(PromptSet.load(source, name, sizes, seed) for name, source in sources))


def _split_files(stem: Path) -> dict[str, Path] | None:
    if not stem.parent.is_dir():
        return None
    found = {s: sorted(stem.parent.glob(f"{stem.name}_{s}.*")) for s in SPLITS}
    return {s: files[0] for s, files in found.items()} if all(found.values()) else None


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
        raise PromptError(f"{where} is empty; give at least one prompt per split")
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


def _others(texts: Sequence[str], taken: set[str], seed: int) -> tuple[str, ...]:
    left = tuple(text for text in texts if text not in taken)
    return Prompts(left).sample(len(left), seed).texts


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
