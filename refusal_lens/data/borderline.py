"""Borderline requests, harmless ones that look harmful: XSTest, OR-Bench, files of one's own, or the package's 60."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import PromptError
from ..records.base import Record
from .files import read_file
from .prompts import PRESETS, Prompts, Source, read_preset
from .rows import distinct, texts_of

OWN = Path(__file__).with_name("borderline.json")
UNSAFE_OF = {"xstest": "xstest-unsafe", "or-bench": "or-bench-toxic"}  # presets


@dataclass(frozen=True)
class Borderline(Record):
    """Harmless requests that look harmful, in two disjoint splits, and harmful ones that contrast with them.

    Attributes:
        train: give the false-refusal direction.
        test: on these rates are reported.
        contrasts: unsafe requests of the same source (XSTest's contrasts, OR-Bench's toxic prompts).
        source: where they come from.
        notes: what was dropped on the way, in words.
    """

    train: Prompts
    test: Prompts
    contrasts: Prompts
    source: str = ""
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        sizes = f"{len(self.train)} train, {len(self.test)} test, {len(self.contrasts)} unsafe"
        return f"Borderline({self.source}: {sizes})"

    def to_frame(self) -> pd.DataFrame:
        """One row per request, with its split."""
        splits = {"train": self.train, "test": self.test, "contrast": self.contrasts}
        return pd.DataFrame([(s, t) for s, texts in splits.items() for t in texts], columns=["split", "prompt"])


def load_borderline(
    source: Source | None = None, contrasts: Source | None = None, sizes: Sequence[int] = (100, 150), seed: int = 0
) -> Borderline:
    """Read borderline requests and split them into those that give a direction and those that are reported.

    The columns say what a file is. XSTest (Röttger et al. 2024; prompt, type, label): rows labelled "unsafe", or in
    files without labels those of a type that begins with "contrast", are unsafe. OR-Bench (Cui et al. 2024; prompt,
    category): all rows are unsafe if the file's name says "toxic", else safe. All requests of other files are safe.

    Args:
        source: a file as for ``PromptSet.load``, the presets "xstest" and "or-bench" (from `datasets`), or a list of
            requests; None for the package's own 60.
        contrasts: more unsafe requests: a file, a preset or a list.
        sizes: most requests for train and for test; in proportion if there are fewer.
        seed: of the shuffle.

    Raises:
        PromptError: a file without a request column, a label other than safe and unsafe, no or too few safe requests.

    Example:
        >>> rl.load_borderline()
        Borderline(borderline.json: 24 train, 36 test, 0 unsafe)
    """
    notes, source = list[str](), OWN if source is None else source
    name = Path(source).name if isinstance(source, (str, Path)) else "given"
    safe, unsafe = told_apart(source, notes)
    if contrasts is not None:
        rest, found = told_apart(contrasts, notes)
        unsafe += found or rest  # a plain list of contrasts does not say that they are unsafe
    seen: dict[str, str] = {}
    unsafe = distinct(unsafe, "unsafe", seen, notes)
    safe = distinct(safe, "safe", seen, notes)
    if len(safe) < 2:
        raise PromptError(
            f"{name} has {len(safe)} safe requests, and two splits need at least 2: give harmless requests that look "
            "harmful, such as or-bench-hard-1k.csv or XSTest's (unsafe ones are contrasts)"
        )
    n_train, n_test = sizes
    if n_train + n_test > len(safe):
        n_train = min(max(1, round(len(safe) * n_train / (n_train + n_test))), len(safe) - 1)
        n_test = len(safe) - n_train
    mixed = Prompts(tuple(safe)).sample(len(safe), seed)
    return Borderline(mixed[:n_train], mixed[n_train : n_train + n_test], Prompts(tuple(unsafe)), name, tuple(notes))


def told_apart(source: Source, notes: list[str]) -> tuple[list[str], list[str]]:
    """The safe and the unsafe requests of a source."""
    named = isinstance(source, (str, Path))
    where = str(source) if named else "the given rows"
    if (preset := where.lower()) in UNSAFE_OF:
        return read_preset(PRESETS[preset]), read_preset(PRESETS[UNSAFE_OF[preset]])
    if preset in UNSAFE_OF.values():
        return [], read_preset(PRESETS[preset])
    if named and not Path(where).is_file():
        raise PromptError(
            f"there is no file {where!r}; give a .csv, .json, .jsonl or .txt file, or one of {', '.join(UNSAFE_OF)}"
        )
    rows: Any = read_file(Path(where)) if named else source
    if isinstance(rows, dict):  # splits
        rows = list(chain(*(some for some in rows.values() if isinstance(some, list))))
    unsafe = _unsafe(rows, where)
    parts = ([row for row, flag in zip(rows, unsafe, strict=True) if flag == wanted] for wanted in (False, True))
    safe, found = (texts_of(part, where, notes) if part else [] for part in parts)
    return safe, found


def _unsafe(rows: Sequence[Any], where: str) -> list[bool]:
    """Whether each row is unsafe, by the columns of the benchmark that they come from."""
    if not rows or not isinstance(rows[0], dict):
        return [False] * len(rows)
    names = {str(key).lower(): key for key in rows[0]}
    if "label" in names:
        labels = [str(row.get(names["label"])).strip().lower() for row in rows]
        if odd := sorted({*labels} - {"safe", "unsafe"}):
            raise PromptError(
                f"{where} has the label {odd[0]!r}, and XSTest's labels are safe and unsafe: rename it, or remove the "
                "column if all requests are safe"
            )
        return [label == "unsafe" for label in labels]
    if "type" in names:
        return [str(row.get(names["type"])).lower().startswith("contrast") for row in rows]
    return ["category" in names and "toxic" in Path(where).name.lower()] * len(rows)
