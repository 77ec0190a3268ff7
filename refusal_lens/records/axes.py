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
from .labels import as_head, head_label, index_of, listed

SAMPLES = ("prompt", "text")  # axes that means and intervals are taken over


def as_html(line: str, frame: pd.DataFrame, rows: int = 8) -> str:
    """A line and the head of a table, for notebooks."""
    return f"<p>{html.escape(line)}</p>{frame.head(rows).to_html(index=False, max_cols=16)}"


class Labelled:
    """Base of whatever holds tensors with named axes."""

    def _axis_names(self) -> dict[str, tuple[str, ...]]:
        """Axis names of each tensor by the tensor's name."""
        raise NotImplementedError

    def _own_axes(self) -> dict[str, tuple[str, ...]]:
        """The same of the tensors that are held, not computed."""
        return self._axis_names()

    def _tensor(self, name: str) -> Tensor | None:
        raise NotImplementedError

    def _axis_labels(self, axis: str) -> Sequence[Any] | None:
        """Labels of an axis; None where its places have only numbers."""
        raise NotImplementedError

    def _tensors(self) -> dict[str, tuple[tuple[str, ...], Tensor]]:
        found = {name: (axes, self._tensor(name)) for name, axes in self._axis_names().items()}
        return {name: (axes, x) for name, (axes, x) in found.items() if x is not None}

    @property
    def sizes(self) -> dict[str, int]:
        """Size of each axis by its name."""
        found: dict[str, int] = {}
        for name, axes in self._own_axes().items():
            x = self._tensor(name)
            found |= {} if x is None else {a: n for a, n in zip(axes, x.shape, strict=True) if a not in found}
        return {axis: size for axis, size in found.items() if axis.isidentifier()}

    def labels_of(self, axis: str) -> Sequence[Any]:
        """Labels of an axis; 0, 1, 2 ... where it has none of its own."""
        size = self.sizes[axis]
        labels = self._axis_labels(axis)
        return labels if labels is not None and len(labels) == size else range(size)

    def _located(self, label: tuple[Any, ...], labels: dict[str, Any]) -> dict[str, int]:
        """Axis -> index of everything that ``sel`` was called with."""
        kind, sizes = type(self).__name__, self.sizes
        chosen = dict(labels)
        for bare in label:
            axis = self._axis_with(bare)
            if axis in chosen:
                raise LabelError(f"{bare!r} is a {axis}, and {axis} is given twice")
            chosen[axis] = bare
        found: dict[str, int] = {}
        for axis, value in chosen.items():
            index_of(tuple(sizes), axis, "axis", f"a {kind}")
            both = axis == "head" and "layer" in sizes and not isinstance(value, int)
            for one, place in zip(("layer", "head"), as_head(value), strict=True) if both else ((axis, value),):
                found[one] = self._index(one, place)
        return found

    def _index(self, axis: str, label: Any) -> int:
        labels = self.labels_of(axis)
        counted = labels == range(len(labels)) or not any(isinstance(item, int) for item in labels[:1])
        if counted and isinstance(label, int) and -len(labels) <= label < len(labels):
            return label % len(labels)
        return index_of(labels, label, axis, f"a {type(self).__name__}")

    def _axis_with(self, label: Any) -> str:
        """The one axis that has a label."""
        sizes = self.sizes
        axes = [axis for axis in sizes if label in self.labels_of(axis)]
        if isinstance(label, str) and "layer" in sizes and "head" in sizes:
            places = [head_label(layer, head) for layer in range(sizes["layer"]) for head in range(sizes["head"])]
            axes += ["head"] if label in places else []
        if len(axes) == 1:
            return axes[0]
        kind = type(self).__name__
        if axes:
            calls = " or ".join(f"sel({axis}={label!r})" for axis in axes)
            raise LabelError(f"{label!r} stands on more than one axis of a {kind}; write {calls}")
        there = "; ".join(f"{axis}: {listed(self.labels_of(axis))}" for axis in sizes)
        raise LabelError(f"there is no label {label!r}; a {kind} has {there}")

    def sel(self, *label: Any, **labels: Any) -> Selected:
        """Select the values at labels: every tensor that has these axes, without them.

        Args:
            label: labels that stand on one axis only (``sel("L1H0")``).
            labels: label by axis (``sel(head="L1H0")`` selects layer and head, ``sel(layer=3)``, ``sel(prompt=0)``).

        Raises:
            LabelError: there is no such axis or label; the message lists those there are.
        """
        places = self._located(label, labels)
        tensors: dict[str, tuple[tuple[str, ...], Tensor]] = {}
        for name, (axes, x) in self._tensors().items():
            if set(places) <= set(axes):
                at = tuple(places.get(axis, slice(None)) for axis in axes)
                tensors[name] = tuple(axis for axis in axes if axis not in places), x[at]
        if not tensors:
            raise LabelError(f"no tensor of a {type(self).__name__} has the axes {' and '.join(places)} together")
        left = dict.fromkeys(axis for axes, _ in tensors.values() for axis in axes if axis.isidentifier())
        return Selected(type(self).__name__, places, tensors, {axis: self.labels_of(axis) for axis in left})

    def _rows(self) -> Iterator[dict[str, Any]]:
        """One row per label of all axes but the prompts', of every tensor that has prompts."""
        tensors = {name: item for name, item in self._tensors().items() if set(item[0]) & set(SAMPLES)}
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


class Selected(Labelled):
    """The values of a record at some labels: each tensor by its name, without the axes that were selected.

    Attributes:
        kind: class of the record.
        places: index by axis; of a table, label by column.
    """

    def __init__(
        self,
        kind: str,
        places: dict[str, Any],
        tensors: dict[str, tuple[tuple[str, ...], Tensor]],
        labels: dict[str, Sequence[Any]],
        frame: pd.DataFrame | None = None,
    ):
        self.kind, self.places, self._held, self._names, self._frame = kind, places, tensors, labels, frame

    @classmethod
    def of_rows(cls, kind: str, frame: pd.DataFrame, label: tuple[Any, ...], labels: dict[str, Any]) -> Selected:
        """The rows of a table at labels, for records without tensors.

        Raises:
            LabelError: there is no such column or label; the message lists those there are.
        """
        chosen = dict(labels)
        for bare in label:
            columns = [str(name) for name in frame if bare in set(frame[name])]
            if len(columns) != 1:
                what = f"stands in {' and '.join(columns)}" if columns else f"stands in no column of a {kind}"
                raise LabelError(f"{bare!r} {what}; name the column, one of {listed(list(frame))}")
            chosen[columns[0]] = bare
        for name, value in chosen.items():
            index_of(list(frame), name, "column", f"a {kind}")
            index_of(list(frame[name].unique()), value, name, f"a {kind}")
            frame = frame[frame[name] == value]
        return cls(kind, chosen, {}, {}, frame.reset_index(drop=True))

    def __getattr__(self, name: str) -> Tensor:
        held = self.__dict__.get("_held", {})
        if name in held:
            return held[name][1]
        raise AttributeError(f"there is no {name!r}; the selection has {listed(tuple(held))}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._held]

    def _axis_names(self) -> dict[str, tuple[str, ...]]:
        return {name: axes for name, (axes, _) in self._held.items()}

    def _tensor(self, name: str) -> Tensor:
        return self._held[name][1]

    def _axis_labels(self, axis: str) -> Sequence[Any] | None:
        return self._names.get(axis)

    def to_frame(self) -> pd.DataFrame:
        """One row per label that is left: mean over prompts, bootstrap 95% interval, n; of a table, its rows."""
        return pd.DataFrame(list(self._rows())) if self._frame is None else self._frame

    def __repr__(self) -> str:
        where = ", ".join(f"{axis} {place}" for axis, place in self.places.items())
        what = [f"{axis} {size}" for axis, size in self.sizes.items()]
        what += [] if self._frame is None else [f"rows {len(self._frame)}"]
        return f"Selected({self.kind} at {where}: {', '.join([*self._held, *what])})"

    def _repr_html_(self) -> str:
        return as_html(repr(self), self.to_frame())
