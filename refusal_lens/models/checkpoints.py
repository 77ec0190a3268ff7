"""Whether a checkpoint's folder is what it claims to be, before anything is allocated by it."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

from ..errors import ModelError

MAX_HEADER = 100_000_000  # bytes; the format's own limit
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size")


def check_folder(folder: Path, config: Any) -> None:
    """Refuse a folder whose index points out of it, or whose config asks for more than its weights hold.

    A model is built from its config before a weight is read, and weights that are missing are made up. Folders without
    safetensors, and quantized ones (their tensors are packed), are not compared.

    Args:
        folder: the checkpoint.
        config: its Hugging Face configuration.

    Raises:
        ModelError: naming the file or the size.
    """
    for index in folder.glob("*.index.json"):
        try:
            shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise ModelError(f"{index} is not an index of weight files ({type(error).__name__})") from error
        for shard in shards:
            if not isinstance(shard, str) or Path(shard).name != shard or not (folder / shard).is_file():
                raise ModelError(f"{index} points to {shard!r}, which is no file of this folder")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        shapes |= _shapes(file)
    if not shapes or getattr(config, "quantization_config", None):
        return
    text = config.get_text_config()
    sizes = {size for shape in shapes.values() for size in shape}
    layers = {int(found[1]) for name in shapes if (found := re.search(r"\.(\d+)\.", name))}
    depth, rows = len(layers), max(sizes)
    limits = {"num_hidden_layers": depth, "hidden_size": rows, "intermediate_size": rows, "vocab_size": rows}
    for name, limit in limits.items():
        asked = getattr(text, name, None)
        if isinstance(asked, int) and limit and not 0 < asked <= limit:
            raise ModelError(f"{folder / 'config.json'} asks for {name} {asked}, and the weights hold {limit} at most")
    # A mixture of experts may name an intermediate size that none of its layers has.
    dense = not any(getattr(text, name, None) for name in EXPERTS)
    for name in ("hidden_size", "intermediate_size") if dense else ("hidden_size",):
        asked = getattr(text, name, None)
        if isinstance(asked, int) and not any(size % asked == 0 for size in sizes):
            raise ModelError(f"{folder / 'config.json'} asks for {name} {asked}, which no weight has")


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by tensor name, from the header alone."""
    try:
        with file.open("rb") as content:
            (length,) = struct.unpack("<Q", content.read(8))
            if length > min(MAX_HEADER, file.stat().st_size):
                raise ValueError(f"its header claims {length} bytes")
            header = json.loads(content.read(length))
        return {name: tuple(map(int, entry["shape"])) for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise ModelError(f"{file} is not a safetensors file ({error}); download it again") from error
