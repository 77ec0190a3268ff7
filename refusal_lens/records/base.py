"""Every result as a frozen dataclass of tensors and labels, saved without pickle.

A record with tensors is one ``.safetensors`` file whose header holds the rest as JSON; a record without
tensors is a ``.json`` file. Files are written beside their place and renamed, so a reader never meets half a
file. Reading trusts nothing: every field is compared with its annotation before a record is made.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from ..errors import ResultError
from ..stats import Interval, Rate
from .fields import misfit
from .files import write_atomically

SCHEMA_VERSION = 1
_REGISTRY: dict[str, type] = {"Rate": Rate, "Interval": Interval}
R = TypeVar("R", bound="Record")


class _Misfit(ValueError):
    """A value that its field does not take."""


class Record:
    """Base of all records: ``save``, ``load``, and a place in the registry by class name."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _REGISTRY[cls.__name__] = cls

    def save(self, path: str | Path, keys: Sequence[str] = ()) -> Path:
        """Write the record; the suffix (``.safetensors`` or ``.json``) is put on if missing, and returned.

        Args:
            path: where.
            keys: content keys that ``Store`` files it under.
        """
        tensors: dict[str, Tensor] = {}
        filed = {"keys": list(keys)} if keys else {}
        document = {"schema": SCHEMA_VERSION, **filed, "record": _encode(self, "", tensors)}
        target = _with_suffix(Path(path), ".safetensors" if tensors else ".json")
        if tensors:
            header = {"refusal_lens": json.dumps(document, allow_nan=False)}
            write_atomically(target, to_safetensors(tensors, metadata=header))
        else:
            write_atomically(target, json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False).encode())
        return target

    @classmethod
    def load(cls: type[R], path: str | Path) -> R:
        """Read what ``save`` wrote.

        Raises:
            ResultError: if the file is missing, broken, or holds another kind of record.
        """
        return load_record(path, cls)


def load_record(path: str | Path, kind: type[R], key: str | None = None) -> R:
    """Read a record of one kind from its file (the suffix may be left out).

    Raises:
        ResultError: if the file is missing, broken, holds another kind of record, or is not filed under ``key``.
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
        what = str(error) if isinstance(error, _Misfit) else repr(error)
        raise ResultError(f"{target} is not a refusal_lens record ({what[:200]}); run the study again") from error
    if not isinstance(record, kind):
        raise ResultError(f"{target} holds a {type(record).__name__}, not a {kind.__name__}")
    return record


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
            return target, document, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
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
    if "$record" in value:
        cls = _REGISTRY[value["$record"]]
        known = {f.name for f in dataclasses.fields(cls)}
        values = {k: _decode(v, tensors) for k, v in value.items() if k in known}
        if wrong := misfit(cls, values):
            raise _Misfit(wrong)
        return cls(**values)
    return {k: _decode(v, tensors) for k, v in value.items()}


def to_json(value: Any) -> Any:
    """A plain-JSON view of a record (no tensors)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
