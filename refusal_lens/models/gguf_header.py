"""Whether a GGUF file's header is honest, before anything is allocated by it.

The reader that transformers uses believes counts and lengths (a nested array of a wrong length runs forever), and a
model is built from the sizes in the metadata before a weight is looked at. Here every count is held against the bytes
that are left, and every size against the tensors.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelError

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MAX_DIMS = 8
MAX_NUMBER = 1 << 24  # context lengths and the like: far above any model


class _Bad(ValueError):
    """What is wrong, in words."""


def check_gguf(path: Path) -> None:
    """Refuse a GGUF file whose header claims what the file does not hold.

    Raises:
        ModelError: in one sentence.
    """
    try:
        if path.stat().st_size < 24:
            raise _Bad("it is too short")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _check(_Reader(data))
    except (_Bad, UnicodeDecodeError, struct.error) as error:
        raise ModelError(f"{path} is not a usable GGUF file: {error}; download or convert it again") from error


class _Reader:
    """A cursor that never leaves the file."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at, self.order = data, 0, "<"

    def skip(self, n: int) -> int:
        """Move on by ``n`` bytes; returns where they began."""
        if n > len(self.data) - self.at:
            raise _Bad(f"it claims {n} bytes at byte {self.at} and ends at {len(self.data)}")
        self.at += n
        return self.at - n

    def number(self, code: str) -> Any:
        """The next number."""
        size = struct.calcsize(code)
        return struct.unpack_from(self.order + code, self.data, self.skip(size))[0]

    def string(self) -> str:
        """The next string."""
        start = self.skip(self.number("Q"))
        return self.data[start : self.at].decode("utf-8")

    def value(self, kind: int) -> Any:
        """The next metadata value; of an array its length only."""
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            inner, length = self.number("I"), self.number("Q")
            if inner in SCALARS:
                self.skip(length * struct.calcsize(SCALARS[inner]))
            elif inner == STRING:
                if length > (len(self.data) - self.at) // 8:
                    raise _Bad(f"an array claims {length} strings")
                for _ in range(length):
                    self.skip(self.number("Q"))
            else:
                raise _Bad(f"an array holds values of type {inner}")
            return [length]
        if kind not in SCALARS:
            raise _Bad(f"a value has the unknown type {kind}")
        return self.number(SCALARS[kind])


def _check(reader: _Reader) -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if reader.data[reader.skip(4) : reader.at] != b"GGUF":
        raise _Bad("it does not begin with GGUF")
    version = reader.number("I")
    if version & 0xFFFF == 0:  # written on a machine of the other byte order
        reader.order, version = ">", version >> 24
    if version not in (2, 3):
        raise _Bad(f"version {version} is not 2 or 3")
    n_tensors, n_values = reader.number("Q"), reader.number("Q")
    if max(n_tensors, n_values) > len(reader.data) // 12:  # the least that one of either takes
        raise _Bad(f"it claims {n_tensors} tensors and {n_values} values")
    values: dict[str, Any] = {}
    for _ in range(n_values):
        name = reader.string()
        values[name] = reader.value(reader.number("I"))
    tensors: dict[str, tuple[int, ...]] = {}
    ends: list[int] = []
    for _ in range(n_tensors):
        name, n_dims = reader.string(), reader.number("I")
        if n_dims > MAX_DIMS:
            raise _Bad(f"tensor {name[:60]} claims {n_dims} dimensions")
        tensors[name] = tuple(reader.number("Q") for _ in range(n_dims))
        kind, offset = reader.number("I"), reader.number("Q")
        try:
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise _Bad(f"tensor {name[:60]} has the unknown type {kind}") from None
        ends.append(offset + math.prod(tensors[name]) * size // block)
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 16:
        raise _Bad(f"its alignment is {alignment}")
    start = -(-reader.at // alignment) * alignment
    if ends and start + max(ends) > len(reader.data):
        raise _Bad(f"its tensors end at byte {start + max(ends)} and the file at {len(reader.data)}: it was cut off")
    _check_sizes(values, tensors)


def _check_sizes(values: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> None:
    """Sizes in the metadata against the tensors, for they decide what is allocated."""
    arch = values.get("general.architecture")
    if not isinstance(arch, str):
        raise _Bad("it names no architecture")
    table = tensors.get("token_embd.weight")
    if not table:
        raise _Bad("it has no token_embd.weight")
    width, rows = table[0], max(table)
    layers = {name.split(".")[1] for name in tensors if name.startswith("blk.")}
    widest = max((n for name, shape in tensors.items() if name.startswith("blk.") for n in shape), default=width)
    limits = {
        "block_count": len(layers),
        "embedding_length": width,
        "feed_forward_length": widest,
        "expert_feed_forward_length": widest,
        "expert_shared_feed_forward_length": widest,
        "expert_count": widest,
        "vocab_size": rows,
        "attention.head_count": width,
        "attention.head_count_kv": width,
        "attention.key_length": widest,
        "attention.value_length": widest,
        "rope.dimension_count": widest,
    }
    for name, value in values.items():
        if not name.startswith(f"{arch}.") or not isinstance(value, int):
            continue
        limit = limits.get(name.removeprefix(f"{arch}."), MAX_NUMBER)
        if not 0 <= value <= limit:
            raise _Bad(f"{name} is {value}, and its tensors allow {limit} at most")
    tokens = values.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and tokens[0] > rows:
        raise _Bad(f"it has {tokens[0]} tokens and embeddings for {rows}")
