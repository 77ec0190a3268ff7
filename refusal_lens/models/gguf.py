"""GGUF files: a strict look at the header, plain weights, and the cache of what dequantization gave.

The cache holds the model as its file has it, written at once after it was read: never an edited one. It has one folder
per file (by the SHA-256 of its content), dtype and version of transformers, in the form of ``save_pretrained``.
"""

import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from tokenizers import Tokenizer

from ..errors import ModelError
from ..records.files import UNFINISHED, file_digest

CACHE = "REFUSAL_LENS_CACHE"  # folder of the cache, or one of OFF
OFF = ("", "0", "off", "no", "false")
Read = Callable[[Path, str | None], tuple[Any, Any]]


def through_cache(file: Path, dtype: Any, read: Read, complete: bool) -> tuple[Any, Any]:
    """Model and tokenizer of a GGUF file, from the cache where they are there, else from the file and into the cache.

    Args:
        dtype: of the weights.
        read: (folder, name of the GGUF file in it or None) -> model and tokenizer.
        complete: whether the tokenizer is the file's own; nothing is written without it.
    """
    place = _place(file, dtype)
    if place is not None:
        try:
            if place.is_dir():
                hf, tokenizer = read(place, None)
                if complete:  # transformers' class adds to what the file has (Qwen 2: a normalizer)
                    tokenizer._tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
                return hf, tokenizer
        except (ModelError, OSError):  # damaged since, or out of reach
            shutil.rmtree(place, ignore_errors=True)
    found = read(file.parent, file.name)
    if place is not None and complete:
        _keep(place, *found)
    return found


def _place(file: Path, dtype: torch.dtype) -> Path | None:
    """Where the file's weights are kept, if they are; None where nothing is to be kept."""
    import transformers

    home = os.environ.get(CACHE, str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "refusal-lens"))
    if home.lower() in OFF:
        return None
    # transformers' reader makes the names, the order of rows and the config out of the file.
    key = f"{file_digest(file)}-{str(dtype).removeprefix('torch.')}-transformers-{transformers.__version__}"
    try:
        return Path(home).expanduser() / "gguf" / key
    except RuntimeError:  # nobody's home, in some containers
        return None


def _keep(place: Path, hf: Any, tokenizer: Any) -> None:
    """Write beside ``place``, flush and rename: what a kill leaves is never read, and the next to write removes it."""
    home, size = place.parent, sum(p.numel() * p.element_size() for p in hf.parameters())
    part = home / f".{place.name}{UNFINISHED}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / ".lock", blocking=False):
            for left in home.glob(f".*{UNFINISHED}"):
                shutil.rmtree(left)
            if shutil.disk_usage(home).free < 1.1 * size:
                raise OSError(errno.ENOSPC, "no room")
            try:
                hf.save_pretrained(part)
                tokenizer.save_pretrained(part)
                for path in part.iterdir():
                    with path.open("rb+") as content:
                        os.fsync(content.fileno())
                part.replace(place)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except Timeout:  # another process keeps the same, or something else: the next load may
        return
    except Exception as error:  # of the disk (safetensors has errors of its own), or a model that can't be written
        what = f"not kept in {home} ({first_line(error)}), so that the next load dequantizes again"
        _say(f"{what}; make room, or set {CACHE} to another folder or to off")
        return
    _say(f"kept in {place} ({size / 1e6:.0f} MB) for the next load; {CACHE}=off keeps nothing")


def _say(what: str) -> None:
    print(f"refusal-lens: the dequantized weights are {what}", file=sys.stderr)


def check_header(path: Path) -> None:
    """Refuse a broken header with a ``ModelError``, by transformers' strict reader: the package gguf's own, used for
    some architectures, takes what lies past the end of the file for empty and may never come back."""
    try:
        from transformers.integrations.gguf.reader import read_gguf_metadata
    except ImportError:  # before 5.2x
        return
    try:
        metadata, tensors = read_gguf_metadata(str(path))
        blocks = metadata.get(f"{metadata['general.architecture']}.block_count", 0)
        if blocks > len(tensors):
            raise ValueError(f"it claims {blocks} layers and has {len(tensors)} tensors")
    except Exception as error:  # whatever the bytes lead to
        raise ModelError(f"{path} is not a usable GGUF file: {first_line(error)}; download it again") from error


def plain_weights() -> Any:
    """Ask for plain weights by name: with the package ``kernels`` transformers would leave them packed."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return config(dequantize=True) if config else None  # before 5.2x weights are always dequantized


def unpacked(hf: Any) -> Any:
    """The same model without the mark that it is quantized, which it is not any more: so it can be saved."""
    quantizer = getattr(hf, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(hf)
    return hf


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    text = str(error).partition(" Available architectures:")[0]  # TransformerLens lists more than a hundred
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".;")
