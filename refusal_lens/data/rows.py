"""Rows of prompt files: the request in each, duplicates, and splits that fit; whatever is dropped is noted."""

import operator
from collections.abc import Sequence
from typing import Any

from ..errors import PromptError
from .conversation import Conversation
from .files import check_text

TEXT_COLUMNS = (
    *("instruction", "prompt", "goal", "behavior", "request", "question", "text", "forbidden_prompt"),
    *("query", "messages", "input"),
)
# What else a row may ask about, joined to its request: HarmBench's contexts as its authors join them, Alpaca's inputs.
CONTEXTS = {
    "contextstring": "{context}\n\n---\n\n{text}",
    "context": "{text}\n\n{context}",
    "input": "{text}\n\n{context}",
}

MISSING = ("nan", "null", "none", "n/a", "<na>")  # what programs write for no text


def texts_of(rows: Any, where: str, notes: list[str]) -> list[str]:
    """The request of every valid row, in order; rows without one, and what was joined to others, are noted."""
    if isinstance(rows, dict) or not isinstance(rows, Sequence) or isinstance(rows, str):
        raise PromptError(f"{where} must be a list of prompts, not {type(rows).__name__}")
    if not rows:
        raise PromptError(f"{where} is empty; give at least one prompt per split")
    main = _text_column(rows[0])
    if isinstance(rows[0], dict) and main is None:
        raise PromptError(
            f"{where} has the columns {', '.join(map(str, rows[0])) or '(none)'}; one must be called "
            f"{', '.join(TEXT_COLUMNS[:-1])} or {TEXT_COLUMNS[-1]}"
        )
    texts, joined = [], dict[str, int]()
    for i, row in enumerate(rows):
        value = row
        if isinstance(row, dict):
            column = main if main in row else _text_column(row)
            value = row.get(column)
            for name, form in CONTEXTS.items():
                extra = next((k for k in row if str(k).lower() == name and k != column), None)
                if extra is not None and isinstance(value, str) and _is_text(row[extra]):
                    value = form.format(text=value.strip(), context=row[extra].strip())
                    joined[extra] = joined.get(extra, 0) + 1
        if isinstance(value, (list, tuple)) and value:
            try:
                value = Conversation(value)
            except PromptError as error:
                raise PromptError(f"row {i + 1} of {where}: {error}") from error
        if _is_text(value):
            check_text(value, f"row {i + 1} of {where}")
            texts.append(value if isinstance(value, Conversation) else value.strip())
    if not texts:
        raise PromptError(f"{where} has no valid row: every prompt is empty or not text")
    if left_out := len(rows) - len(texts):
        notes.append(f"{left_out} row{'s' * (left_out > 1)} without a request left out of {where}")
    for column, n in joined.items():
        notes.append(f"{n} request{'s' * (n > 1)} of {where} joined with {'their' if n > 1 else 'its'} {column}")
    return texts


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower() not in ("", *MISSING)


def _text_column(row: Any) -> Any:
    """The column of a row that holds its request, or None."""
    by_lower = {str(key).lower(): key for key in row} if isinstance(row, dict) else {}
    return next((by_lower[name] for name in TEXT_COLUMNS if name in by_lower), None)


def folded(text: str) -> str:
    """The text for comparisons: spaces and case aside."""
    return " ".join(text.casefold().split())


def distinct(texts: list[str], split: str, seen: dict[str, str], notes: list[str]) -> list[str]:
    """Texts not met before; what is dropped is noted."""
    kept: list[str] = []
    within, across = 0, dict[str, int]()
    for text in texts:
        key = folded(text)
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


def checked_sizes(sizes: Any) -> tuple[int, int, int]:
    """Sizes of the three splits; PromptError if they are not three whole numbers from 1 on."""
    try:
        train, val, test = map(operator.index, sizes)
    except (TypeError, ValueError):
        train = val = test = 0
    if min(train, val, test) < 1:
        kinds = "training, validation and test prompts"
        raise PromptError(f"sizes are three whole numbers from 1 on, of {kinds}, not {sizes!r}")
    return train, val, test


def fitted(sizes: Sequence[int], available: int, where: str, notes: list[str]) -> list[int]:
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
