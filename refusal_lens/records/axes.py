"""Tensors with named axes: their sizes, the values at a label, a table of means."""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
from torch import Tensor

from ..errors import LabelError
from ..stats import mean_interval
from .labels import as_head, head_label, index_of, listed, shortened

SAMPLES = ("prompt", "text")  # axes that means and intervals are taken over


def as_html(line: str, frame: pd.DataFrame, rows: int = 8) -> str:
    """A line and the head of a table, for notebooks."""
    return f"<p>{html.escape(line)}</p>{frame.head(rows).to_html(index=False, max_cols=16)}"


class Selected:
    """Tensors with named axes, at selected labels: each tensor by its name, without the selected axes.

    Args:
        kind: class of the record.
        places: index by axis; of a table, label by column.
        tensors: axes and values by name.
        labels: of the axes whose places have more than numbers.
        frame: the rows, for a table.
    """

    def __init__(
        self,
        kind: str,
        places: dict[str, Any],
        tensors: dict[str, tuple[tuple[str, ...], Tensor]],
        labels: dict[str, Sequence[Any]],
        frame: pd.DataFrame | None = None,
    ):
        self.kind, self.places, self._held, self._labels, self._frame = kind, places, tensors, labels, frame

    @classmethod
    def of_rows(cls, kind: str, frame: pd.DataFrame, label: tuple[Any, ...], labels: dict[str, Any]) -> Selected:
        """The rows of a table at labels, for records without tensors; a ``LabelError`` lists columns or labels."""
        chosen = dict(labels)
        for bare in label:
            columns = [str(name) for name in frame if bare in set(frame[name])]
            if len(columns) != 1:
                what = f"stands in {' and '.join(columns)}" if columns else f"stands in no column of {kind}"
                raise LabelError(f"{bare!r} {what}; name the column, one of {listed(list(frame))}")
            chosen[columns[0]] = bare
        for name, value in chosen.items():
            index_of(list(frame), name, "column", kind)
            index_of(list(frame[name].unique()), value, name, kind)
            frame = frame[frame[name] == value]
        return cls(kind, chosen, {}, {}, frame.reset_index(drop=True))

    @property
    def sizes(self) -> dict[str, int]:
        """Size of each axis by its name."""
        found: dict[str, int] = {}
        for axes, x in self._held.values():
            found |= {a: n for a, n in zip(axes, x.shape, strict=True) if a.isidentifier() and a not in found}
        return found

    def labels_of(self, axis: str) -> Sequence[Any]:
        """Labels of an axis; 0, 1, 2 ... where it has none of its own."""
        size, labels = self.sizes[axis], self._labels.get(axis) or ()
        return labels if len(labels) == size else range(size)

    def _axis_with(self, label: Any) -> str:
        """The one axis that has a label; "head" for a head's, also where a tensor of other parts names it."""
        sizes = self.sizes
        if "layer" in sizes and "head" in sizes:
            every = itertools.product(range(sizes["layer"]), range(sizes["head"]))
            if any(label in (head, head_label(*head)) for head in every):
                return "head"
        axes = [axis for axis in sizes if label in self.labels_of(axis)]
        if len(axes) == 1:
            return axes[0]
        if axes:
            calls = " or ".join(f"sel({axis}={label!r})" for axis in axes)
            raise LabelError(f"{label!r} is on more than one axis of {self.kind}; write {calls}")
        there = "; ".join(f"{axis}: {listed(self.labels_of(axis))}" for axis in sizes)
        raise LabelError(f"there is no label {label!r}; {self.kind} has {there}")

    def _index(self, axis: str, label: Any) -> int:
        labels = self.labels_of(axis)
        counted = labels == range(len(labels)) or not any(isinstance(item, int) for item in labels[:1])
        if counted and isinstance(label, int) and -len(labels) <= label < len(labels):
            return label % len(labels)
        if (n := list(labels).count(label)) > 1:
            raise LabelError(f"{n} entries of {axis} are {shortened(repr(label))}: select one by its number")
        return index_of(labels, label, axis, self.kind)

    def sel(self, *label: Any, **labels: Any) -> Selected:
        """Select the values at labels; see ``Record.sel``."""
        sizes, places = self.sizes, dict[str, int]()
        for bare in label:
            axis = self._axis_with(bare)
            if axis in labels:
                raise LabelError(f"{bare!r} is a {axis}, and {axis} is given twice")
            labels[axis] = bare
        for axis, value in labels.items():
            index_of(tuple(sizes), axis, "axis", self.kind)
            both = axis == "head" and "layer" in sizes and not isinstance(value, int)
            for one, place in zip(("layer", "head"), as_head(value), strict=True) if both else ((axis, value),):
                places[one] = self._index(one, place)
        tensors = {}
        for name, (axes, x) in self._held.items():
            if set(places) <= set(axes):
                at = tuple(places.get(axis, slice(None)) for axis in axes)
                tensors[name] = tuple(axis for axis in axes if axis not in places), x[at]
        if not tensors:
            raise LabelError(f"no tensor of {self.kind} has the axes {' and '.join(places)} together")
        return Selected(
            self.kind, places, tensors, {axis: self.labels_of(axis) for axis in sizes if axis not in places}
        )

    def __getattr__(self, name: str) -> Tensor:
        held = self.__dict__.get("_held", {})
        if name in held:
            return held[name][1]
        raise AttributeError(f"there is no {name!r}; the selection has {listed(tuple(held))}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._held]

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per label of all axes but the prompts', of every tensor that has prompts."""
        tensors = {name: item for name, item in self._held.items() if set(item[0]) & set(SAMPLES)}
        for name, (axes, x) in tensors.items():
            sample = next(i for i, axis in enumerate(axes) if axis in SAMPLES)
            others = [axis for axis in axes if axis not in SAMPLES]
            labels = [self.labels_of(axis) if axis.isidentifier() else range(int(axis)) for axis in others]
            grid = x.movedim(sample, -1)
            for place in itertools.product(*(range(len(each)) for each in labels)):
                row: dict[str, Any] = {"value": name} if len(tensors) > 1 else {}
                row |= {axis: labels[i][place[i]] for i, axis in enumerate(others)}
                if "layer" in row and "head" in row:
                    row["label"] = head_label(row["layer"], row["head"])
                found = mean_interval([v for v in grid[place].tolist() if v == v])
                yield {**row, "mean": found.mean, "low": found.low, "high": found.high, "n": found.n}

    def to_frame(self) -> pd.DataFrame:
        """One row per label that is left: mean over prompts, bootstrap 95% interval, n; single values where no
        prompts are left; of a table, its rows."""
        if self._frame is not None:
            return self._frame
        return pd.DataFrame(list(self.rows()) or list(self._cells()))

    def _cells(self) -> Iterator[dict[str, Any]]:
        """One row per entry, of tensors without prompts."""
        for name, (axes, x) in self._held.items():
            for place in itertools.product(*map(range, x.shape)):
                row = {axis: self.labels_of(axis)[i] for axis, i in zip(axes, place, strict=True)}
                yield {"value": name, **row, "mean": x[place].item()}

    def __repr__(self) -> str:
        where = ", ".join(f"{axis} {place}" for axis, place in self.places.items())
        what = [f"{axis} {size}" for axis, size in self.sizes.items()]
        what += [] if self._frame is None else [f"rows {len(self._frame)}"]
        return f"Selected({self.kind} at {where}: {', '.join([*self._held, *what])})"

    def _repr_html_(self) -> str:
        return as_html(repr(self), self.to_frame())
