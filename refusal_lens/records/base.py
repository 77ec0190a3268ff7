"""Results: frozen dataclasses of tensors and labels, saved without pickle.

A record with tensors is one ``.safetensors`` file whose header holds the rest as JSON; a record without tensors is a
``.json`` file. Each file is written under a temporary name and then renamed, so a reader never sees half a file. Every
field is checked against its annotation before a record is made, because files may come from anywhere.
"""

import dataclasses
import importlib.util
import inspect
import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pandas as pd
import safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from ..errors import LabelError, ResultError
from ..stats import Interval, Rate
from .axes import Selected, as_html
from .fields import axis_names, misfit
from .files import write_atomically, write_json
from .labels import index_of, shortened

SCHEMA_VERSION = 1
_REGISTRY: dict[str, type] = {"Rate": Rate, "Interval": Interval}
_FIGURES: dict[type, dict[str, Callable[..., Any]]] = {}
_NUMBERS = "refusal_lens.report.style"  # draws the table of a record without figures; by name, like all figures
R = TypeVar("R", bound="Record")
F = TypeVar("F", bound=Callable[..., Any])


class Record:
    """Base of all records.

    Annotations name the axes of tensors (``Float[Tensor, "layer head prompt"]``): ``sizes``, ``sel``, ``to_frame``
    and the one-line repr follow from them. Class keywords say the rest:

        class TopHeads(Record, axes={"prompt": "prompts"}, formerly="HeadReport", renamed={"report": "reported"})

    Args:
        axes: field, property or tuple that holds the labels of an axis.
        also: properties or methods without arguments that return tensors and are selected with the fields.
        formerly: name of the class in older result folders.
        renamed: name of a field in older result folders -> its name.
        figures: module that draws the class; "figures" beside its own module if not given.
    """

    _axes: ClassVar[dict[str, Any]] = {}
    _also: ClassVar[tuple[str, ...]] = ()
    _renamed: ClassVar[dict[str, str]] = {}
    _drawn_by: ClassVar[str] = ""

    def __init_subclass__(
        cls,
        axes: dict[str, Any] | None = None,
        also: tuple[str, ...] = (),
        formerly: str = "",
        renamed: dict[str, str] | None = None,
        figures: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)
        _REGISTRY[cls.__name__] = cls
        if formerly:
            _REGISTRY[formerly] = cls
        cls._axes, cls._also, cls._renamed = axes or {}, also, renamed or {}
        package = cls.__module__.rpartition(".")[0]
        cls._drawn_by = figures or (f"{package}.figures" if package else "")
        if "__repr__" not in vars(cls):  # the decorator of dataclasses would print tensors
            cls.__repr__ = Record.__repr__  # type: ignore[method-assign]

    def save(self, path: str | Path, keys: Sequence[str] = ()) -> Path:
        """Write the record; the suffix (``.safetensors`` or ``.json``) is appended if missing. Returns the path.

        Args:
            path: file to write.
            keys: content keys under which ``Store`` files it.
        """
        tensors: dict[str, Tensor] = {}
        filed = {"keys": list(keys)} if keys else {}
        document = {"schema": SCHEMA_VERSION, **filed, "record": _encode(self, "", tensors)}
        target = _with_suffix(Path(path), ".safetensors" if tensors else ".json")
        if tensors:
            header = {"refusal_lens": json.dumps(document, allow_nan=False)}
            write_atomically(target, to_safetensors(tensors, metadata=header))
        else:
            write_json(target, document)
        return target

    @classmethod
    def load(cls: type[R], path: str | Path) -> R:
        """Read what ``save`` wrote.

        Raises:
            ResultError: the file is missing, broken, or holds another kind of record.
        """
        return load_record(path, cls)

    def _view(self, everything: bool = True) -> Selected:
        """Tensors with their axes and labels; only the fields, and no labels, for a quick look."""
        axes = axis_names(type(self), self._also if everything else ())  # type: ignore[arg-type]  # mypy wants a hash
        names = self._axes if everything else {}
        labels = {axis: getattr(self, it) if isinstance(it, str) else it for axis, it in names.items()}
        values = {name: getattr(self, name) for name in axes}
        found = {name: (axes[name], value() if callable(value) else value) for name, value in values.items()}
        tensors = {name: item for name, item in found.items() if item[1] is not None}
        return Selected(type(self).__name__, {}, tensors, labels)

    @property
    def sizes(self) -> dict[str, int]:
        """Size of each axis by its name."""
        return self._view(everything=False).sizes

    def sel(self, *label: Any, **labels: Any) -> Selected:
        """Select the values at labels: every tensor that has these axes, without them; of a record without tensors, the
        rows of its table.

        Args:
            label: labels that are on one axis only (``sel("L1H0")``).
            labels: label by axis (``sel(head="L1H0")`` selects layer and head, ``sel(layer=3)``, ``sel(prompt=0)``).

        Raises:
            LabelError: there is no such axis or label; the message lists the existing ones.
        """
        if self.sizes:
            return self._view().sel(*label, **labels)
        return Selected.of_rows(type(self).__name__, self.to_frame(), label, labels)

    def to_frame(self) -> pd.DataFrame:
        """One row per label of all axes but the prompts': mean over prompts, bootstrap 95% interval, n.

        A record without prompts gives one row per field.
        """
        return self._head(None)

    def _head(self, rows: int | None) -> pd.DataFrame:
        """The first rows of ``to_frame``, without the cost of the others where that can be."""
        if type(self).to_frame is not Record.to_frame:
            return self.to_frame()[:rows]
        if table := list(itertools.islice(self._view().rows(), rows)):
            return pd.DataFrame(table)
        fields = [(f.name, _short(getattr(self, f.name))) for f in dataclasses.fields(self)]  # type: ignore[arg-type]
        return pd.DataFrame(fields, columns=["field", "value"])

    def __repr__(self) -> str:
        inside = ", ".join(f"{axis} {size}" for axis, size in self.sizes.items())
        if not inside:
            values = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))  # type: ignore[arg-type]
            inside = ", ".join(f"{name} {_short(value)}" for name, value in values if value not in (None, "", ()))
        return f"{type(self).__name__}({inside if len(inside) <= 200 else inside[:199] + '…'})"

    def _repr_html_(self) -> str:
        return as_html(repr(self), self._head(8))

    def plot(self, kind: str | None = None, **options: Any) -> Any:
        """Draw the record: a Plotly figure with ``save("x.svg")`` (png, svg, pdf, html); of a record without figures of
        its own, the numbers of its table.

        Args:
            kind: which figure; the record's main figure if None.
            options: passed to the figure's function.

        Raises:
            LabelError: there is no such figure (the message lists those there are), or nothing at these options.
        """
        if self._drawn_by and importlib.util.find_spec(self._drawn_by) is not None:
            importlib.import_module(self._drawn_by)
        if type(self) not in _FIGURES:
            importlib.import_module(_NUMBERS)
        figures, name = _FIGURES.get(type(self), _FIGURES.get(Record, {})), type(self).__name__
        kind = kind or next(iter(figures))
        index_of(tuple(figures), kind, "figure", name)
        try:
            inspect.signature(figures[kind]).bind(self, **options)
            return figures[kind](self, **options)
        except (TypeError, IndexError) as error:
            raise LabelError(f"the figure {kind!r} of {name} can't be drawn with {options}: {error}") from error


def stored_as_messages(conversation: type) -> None:
    """Register the class of texts that are kept as their messages, and made of them again."""
    _REGISTRY["$messages"] = conversation


def figure(kind: str, *records: type[Record]) -> Callable[[F], F]:
    """Register a function as the figure ``kind`` of record classes; the first one of a class is its main figure."""

    def register(function: F) -> F:
        for cls in records:
            _FIGURES.setdefault(cls, {})[kind] = function
        return function

    return register


def _short(value: Any) -> str:
    """A field's value in a few words; of tensors the shape, of collections the length."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, (tuple, dict)):
        return f"[{len(value)}]"
    if isinstance(value, float):
        return f"{value:.4g}"
    return shortened(repr(value) if isinstance(value, (str, Record)) else str(value))


def load_record(path: str | Path, kind: type[R], key: str | None = None) -> R:
    """Read a record of one kind from its file (the suffix may be left out).

    Raises:
        ResultError: the file is missing, broken, holds another kind of record, or is not filed under ``key``.
    """
    target, document, tensors = _read(Path(path))
    try:
        if not 1 <= document["schema"] <= SCHEMA_VERSION:
            raise ResultError(
                f"{target} has schema {document['schema']}, and this version reads 1 to {SCHEMA_VERSION}: a newer "
                "refusal_lens wrote it, or the file is damaged"
            )
        if key is not None and key not in document.get("keys", ()):
            raise ResultError(f"{target} was made from other inputs")
        record = _decode(document["record"], tensors)
    except ResultError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        what = str(error) if isinstance(error, ValueError) else repr(error)
        raise ResultError(f"{target} is not a refusal_lens record ({what[:200]}); run the study again") from error
    if not isinstance(record, kind):
        raise ResultError(f"{target} holds a {type(record).__name__}, not a {kind.__name__}")
    return record


def _record_class(name: str) -> Any:
    """The class of that name; modules of the package that define records are imported when it is not known yet."""
    root = Path(__file__).parents[1]
    if name not in _REGISTRY:
        for file in root.glob("*/*.py"):
            if "(Record" in file.read_text("utf-8"):
                importlib.import_module(f"{root.name}.{file.parent.name}.{file.stem}")
    return _REGISTRY[name]


def _with_suffix(path: Path, suffix: str) -> Path:
    return path if path.suffix == suffix else path.with_name(path.name + suffix)


def _read(path: Path) -> tuple[Path, Any, dict[str, Tensor]]:
    names = [path] if path.suffix in (".safetensors", ".json") else []
    names += [_with_suffix(path, ".safetensors"), _with_suffix(path, ".json")]
    target = next((name for name in names if name.is_file()), None)
    if target is None:
        raise ResultError(f"there is no record at {path}")
    try:
        if target.suffix == ".json":
            return target, json.loads(target.read_text("utf-8")), {}
        with safetensors.safe_open(target, "pt") as file:
            document = json.loads((file.metadata() or {}).get("refusal_lens", "null"))
            # Clones: in the file's own memory tensors are aligned as its header happens to end, and sums then round
            # otherwise than those of a run that did not load them.
            return target, document, {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise ResultError(f"{target} can't be read: {(str(error).splitlines() or ['?'])[0][:200]}") from error


def _encode(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = path or "value"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"$tensor": name}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: _encode(getattr(value, f.name), f"{path}.{f.name}".lstrip("."), tensors)
            for f in dataclasses.fields(value)
        }
        return {"$record": type(value).__name__, **fields}
    if isinstance(value, dict):
        return {str(k): _encode(v, f"{path}.{k}".lstrip("."), tensors) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(v, f"{path}.{i}".lstrip("."), tensors) for i, v in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}
    if messages := getattr(value, "messages", None):  # a conversation is text too
        return {"$messages": [dict(message) for message in messages]}
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"a record can't hold a {type(value).__name__} at {path!r}")


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return tuple(_decode(v, tensors) for v in value)
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$float" in value:
        return float(value["$float"])
    if "$messages" in value:
        return _REGISTRY["$messages"](value["$messages"])
    if "$record" in value:
        cls: Any = _record_class(value["$record"])
        known = {f.name for f in dataclasses.fields(cls)}
        renamed: dict[str, str] = getattr(cls, "_renamed", {})
        named = ((renamed.get(k, k), v) for k, v in value.items())
        values = {k: _decode(v, tensors) for k, v in named if k in known}
        if wrong := misfit(cls, values):
            raise ValueError(wrong)
        return cls(**values)
    return {k: _decode(v, tensors) for k, v in value.items()}
