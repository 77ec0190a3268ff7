"""All groups of rows, in the order of the table."""

from collections.abc import Callable, Iterable

from . import looks, rows, stages
from .rows import Ground, Row

GROUPS: dict[str, Callable[[Ground], Iterable[Row]]] = {
    **rows.GROUPS,
    "split": lambda g: [looks.split_row(g)],
    "curve": lambda g: [looks.curve_row(g)],
    "dose": lambda g: [looks.dose_row(g)],
    "cone": lambda g: [looks.cone_row(g)],
    "stages": stages.stage_rows,
    "run": lambda g: [stages.run_row(g)],
}
