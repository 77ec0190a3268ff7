"""Suffixes as input data: from files to sets, and their controls of equal token length.

Nothing here looks for suffixes; they come from a file, as JSONL, CSV, plain text, or the result files of nanoGCG and
JailbreakBench.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from .chat import ChatFormat
from .errors import PromptError
from .records import Record

ATTACK_KINDS = ("adversarial", "gcg", "adaptive", "jailbreakbench")
BENIGN_KINDS = ("random_words", "greeting", "style", "fluent", "benign")
TRIES = 60  # random draws before a control is given up


@dataclass(frozen=True)
class Suffix(Record):
    """One suffix.

    Attributes:
        kind: "adversarial", "gcg", "greeting" ...: whatever the file says; see ``is_attack``.
        text: appended to a request as it is, so it begins with the space that parts them.
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
        notes: what was dropped on the way, in words.
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
            PromptError: there is none.
        """
        kept = tuple(item for item in self.items if item.kind in kinds)
        if not kept:
            raise PromptError(f"{self.name} has no suffix of kind {' or '.join(kinds)}; it has {', '.join(self.kinds)}")
        return SuffixSet(self.name, kept, self.notes)

    @classmethod
    def load(cls, source: str | Path, kind: str = "adversarial", separator: str = " ") -> SuffixSet:
        """Read suffixes.

        Args:
            source: .jsonl or .csv with a column "suffix" (and "kind"), .txt (one a line), .json: a list of such rows
                or of strings, nanoGCG's result (``best_string``; alone, in a list, or a line each), or a
                JailbreakBench artifact (``jailbreaks``: what ``prompt`` has behind ``goal``).
            kind: kind of the suffixes where the file names none.
            separator: put before a suffix that does not begin with white space.

        Raises:
            PromptError: missing, broken or empty file, or no suffix in it.
        """
        path = Path(source)
        if not path.is_file():
            raise PromptError(f"there is no suffix file {path}; give a .jsonl, .csv, .txt or .json file")
        return cls.from_rows(_read(path), path.stem, kind, separator, str(path))

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
            if not isinstance(what, str):
                raise PromptError(f"suffix {i + 1} of {where} has a kind that is no text: {str(what)[:60]}")
            text = text if text[:1].isspace() else separator + text
            items.setdefault(text, Suffix(what, text))
        if not items:
            raise PromptError(f"{where} holds no suffix; give at least one")
        if len(items) < len(found):
            notes.append(f"{len(found) - len(items)} repeated suffix(es) dropped")
        return cls(name, tuple(items.values()), tuple(notes))

    def lengths(self, chat: ChatFormat, instruction: str) -> tuple[int, ...]:
        """Tokens of each suffix behind ``instruction``.

        Raises:
            PromptError: the tokenizer merges a suffix with the instruction's end.
        """
        return tuple(suffix_length(chat, instruction, item.text) for item in self.items)


def suffix_length(chat: ChatFormat, instruction: str, suffix: str) -> int:
    """Tokens that ``suffix`` has behind ``instruction``."""
    start, stop = chat.encode(instruction, suffix).spans.suffix
    return stop - start


def suffix_ids(chat: ChatFormat, instruction: str, suffix: str) -> tuple[int, ...]:
    """Token ids of ``suffix`` behind ``instruction``."""
    encoded = chat.encode(instruction, suffix)
    return encoded.ids[slice(*encoded.spans.suffix)]


def check_suffix(chat: ChatFormat, instructions: Sequence[str], suffix: str, n_ctx: int) -> tuple[int, ...]:
    """Tokens of ``suffix`` behind each instruction, after checking that everything fits.

    Raises:
        PromptError: an empty suffix, a token across the boundary, or a prompt longer than ``n_ctx`` (0: no limit).
    """
    if not suffix.strip():
        raise PromptError("the suffix is empty; leave it out to measure plain prompts")
    counts = []
    for text in instructions:
        encoded = chat.encode(text, suffix)
        counts.append(encoded.spans.suffix[1] - encoded.spans.suffix[0])
        if n_ctx and len(encoded.ids) > n_ctx:
            raise PromptError(
                f"with the suffix {suffix[:40]!r} ({counts[-1]} tokens) a prompt has {len(encoded.ids)} tokens and the "
                f"model takes {n_ctx}: use a shorter suffix or leave the prompt {text[:40]!r} out"
            )
        # The instruction must stay what it was: its last token could have been merged with the template before.
        alone = chat.encode(text)
        if encoded.ids[: encoded.spans.instruction[1]] != alone.ids[: alone.spans.instruction[1]]:
            raise PromptError(
                f"the suffix {suffix[:40]!r} changes the tokens of the instruction {text[:40]!r}: begin the suffix "
                "with a space or another character"
            )
    return tuple(counts)


@dataclass(frozen=True)
class Controls:
    """One control suffix per prompt.

    Attributes:
        texts: as appended to each prompt.
        exact: whether each has exactly as many tokens as the suffix it controls for.
    """

    texts: tuple[str, ...]
    exact: tuple[bool, ...]


def random_controls(chat: ChatFormat, instructions: Sequence[str], suffix: str, seed: int = 0) -> Controls:
    """Random tokens of equal length, drawn afresh for each prompt; each text tokenizes to exactly the tokens drawn.

    Raises:
        PromptError: no draw of this length survives decoding and encoding behind some prompt.
    """
    rng = random.Random(seed)
    starts, words, others = _pools(chat)
    texts = []
    for instruction in instructions:
        wanted = suffix_length(chat, instruction, suffix)
        for trial in range(TRIES):
            # Words behind a space keep apart; if draws from all tokens keep merging, only these are drawn.
            pool = others if trial < TRIES // 2 or not words else words
            ids = [rng.choice(starts), *(rng.choice(pool) for _ in range(wanted - 1))]
            text = _decode(chat, ids)
            if _survives(chat, instruction, text, ids):
                texts.append(text)
                break
        else:
            raise PromptError(
                f"no random text of {wanted} tokens keeps its tokens behind {instruction[:40]!r} in {TRIES} draws; use "
                "another tokenizer or a shorter suffix"
            )
    return Controls(tuple(texts), (True,) * len(texts))


def shuffled_controls(chat: ChatFormat, instructions: Sequence[str], suffix: str, seed: int = 0) -> Controls:
    """The suffix's own tokens in another order, drawn afresh for each prompt.

    Where no order keeps its tokens after decoding and encoding, its words are shuffled and ``exact`` is False if the
    length differs.
    """
    rng = random.Random(seed)
    texts, exact = [], []
    for instruction in instructions:
        ids = list(suffix_ids(chat, instruction, suffix))
        found = None
        for _ in range(TRIES):
            order = rng.sample(ids, len(ids))
            text = _decode(chat, order)
            if (order != ids or len(set(ids)) == 1) and _survives(chat, instruction, text, order):
                found = text
                break
        if found is None:
            words = suffix.split()
            found = suffix[: len(suffix) - len(suffix.lstrip())] + " ".join(rng.sample(words, len(words)))
        texts.append(found)
        exact.append(suffix_length(chat, instruction, found) == len(ids))
    return Controls(tuple(texts), tuple(exact))


def _survives(chat: ChatFormat, instruction: str, text: str, ids: Sequence[int]) -> bool:
    try:
        encoded = chat.encode(instruction, text)
        alone = chat.encode(instruction)
    except PromptError:  # merged with the instruction's end, or changed by the template
        return False
    kept = encoded.ids[: encoded.spans.instruction[1]] == alone.ids[: alone.spans.instruction[1]]
    return kept and encoded.ids[slice(*encoded.spans.suffix)] == tuple(ids)


def _decode(chat: ChatFormat, ids: Sequence[int]) -> str:
    text = chat.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    # SentencePiece's decoders drop the space that the first token stands for.
    first = str(chat.tokenizer.convert_ids_to_tokens(ids[0]))
    return " " + text if first[:1] in ("▁", "Ġ") and not text.startswith(" ") else text


@lru_cache(maxsize=8)
def _pools(chat: ChatFormat) -> tuple[list[int], list[int], list[int]]:
    """Printable tokens that begin with a space; of these, words; and all printable ones. No special tokens."""
    special = set(chat.tokenizer.all_special_ids) | set(getattr(chat.tokenizer, "added_tokens_decoder", {}))
    starts, words, others = [], [], []
    for token in sorted(chat.tokenizer.get_vocab().values()):
        if token in special:
            continue
        text = _decode(chat, [token])
        if not text.isprintable() or not text.isascii():
            continue
        others.append(token)
        if text.startswith(" "):
            starts.append(token)
            if text[1:].isalpha():
                words.append(token)
    if not starts:
        raise PromptError("the tokenizer has no token that begins with a space, so no random suffix can be drawn")
    return starts, words, others


# -- files ----------------------------------------------------------------------------------------------------------


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".csv":
            return pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
        content = path.read_text("utf-8-sig")
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in content.splitlines() if line.strip()]
        if path.suffix == ".json":
            return json.loads(content)
        if path.suffix == ".txt":
            return [line for line in content.splitlines() if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise PromptError(
            f"{path} can't be read as {path.suffix[1:]}: {(str(error).splitlines() or ['?'])[0]}"
        ) from error
    raise PromptError(f"{path} has the ending {path.suffix!r}; use .jsonl, .csv, .txt or .json")


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
    """Suffixes of an artifact: prompts that are their goal and something behind it."""
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
            f"{where} holds no suffix: none of its {other} prompts is its goal with something behind it (only suffix "
            "attacks, such as GCG, are)"
        )
    if other:
        notes.append(f"{other} jailbreak(s) left out: no prompt, or a prompt that is not goal + suffix")
    return found
