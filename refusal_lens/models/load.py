"""load_model: a chat model from a hub id, a folder, a .gguf file, the embedded model, or a TransformerLens model."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch

from ..errors import ModelError
from .allocator import loading
from .checkpoints import check_folder
from .gguf_header import check_gguf
from .model import HookedChatModel

SMALL_MODEL = 50_000_000  # below this many parameters float32 costs nothing and is exact


def load_model(
    source: Any = "organism",
    *,
    dtype: torch.dtype | str | None = None,
    device: str | None = None,
    device_map: Any = None,
    system: str | None = None,
    tokenizer: Any = None,
    trust_remote_code: bool = False,
) -> HookedChatModel:
    """Load a chat model with hook points.

    Args:
        source: "organism" (the embedded model), a Hugging Face id, a local folder, a .gguf file (dequantized by
            transformers), or a ``TransformerBridge`` or ``HookedTransformer`` that you already have.
        dtype: "float32", "bfloat16" ...; by default float32 for small models and where bfloat16 is not native.
        device: "cuda", "cpu" ...; by default a GPU if there is one.
        device_map: e.g. "auto" to spread over several GPUs (then no ``device``).
        system: system prompt of every conversation.
        tokenizer: the tokenizer to use; by default the checkpoint's own.
        trust_remote_code: run code that comes with the checkpoint.

    Raises:
        ModelError: with the remedy, when the source can't be loaded or is not a chat model.
    """
    if not isinstance(source, (str, Path)):
        return HookedChatModel(source, tokenizer, system=system)
    from transformer_lens.model_bridge import TransformerBridge

    folder, name, gguf = _resolve(source)
    if gguf:
        check_gguf(Path(folder) / gguf)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with loading():
        kwargs: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        if gguf:
            kwargs["gguf_file"] = gguf
        tok = tokenizer or _load(name, "tokenizer", folder, **kwargs)
        if not getattr(tok, "chat_template", None):
            raise ModelError(
                f"{name} has a tokenizer without a chat template: it is a base model or its folder is incomplete; "
                "use the chat ('instruct') version"
            )
        config = None if gguf else _load(name, "config", folder, **kwargs)
        if config is not None and isinstance(folder, Path):
            check_folder(folder, config)
        hf = _load(
            name,
            "model",
            folder,
            dtype=_dtype(dtype, device, config, gguf),
            device_map=device_map,
            attn_implementation="eager",
            **kwargs,
        ).eval()
        if not hf.config.architectures:
            hf.config.architectures = [type(hf).__name__]
        hf.requires_grad_(False)
        if device_map is None:
            hf.to(device)
        if not getattr(tok, "name_or_path", ""):
            tok.name_or_path = str(folder)
        try:
            bridge = TransformerBridge.boot_transformers(
                str(folder), hf_model=hf, tokenizer=tok, dtype=hf.dtype, device=None if device_map else device
            )
        except Exception as error:
            raise ModelError(
                f"TransformerLens can't wrap {name} ({type(hf).__name__}): {_first_line(error)}"
            ) from error
        bridge.original_model.requires_grad_(False)  # transformer-lens 3.9 switches it on again
        return HookedChatModel(bridge, tok, name=name, system=system)


def _resolve(source: str | Path) -> tuple[str | Path, str, str | None]:
    """(what transformers loads, label, gguf file name)."""
    text = str(source)
    if text == "organism":
        from ..data.organism import MODEL_DIR

        return MODEL_DIR, "organism", None
    path = Path(text).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"there is no file {path}")
        return path.parent, path.stem, path.name
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"the folder {path} has no config.json: it is not a Hugging Face checkpoint")
        return path, path.name, None
    if path.exists():
        raise ModelError(f"{path} is a file; give a checkpoint's folder, a .gguf file or a Hugging Face id")
    if text.count("/") > 1 or text.startswith((".", "/", "~")):
        raise ModelError(f"there is no model at {text}: give a folder, a .gguf file or a Hugging Face id")
    return text, text, None


def source_digest(source: str | Path) -> str:
    """SHA-256 of a local checkpoint's weights, tokenizer and config; the id itself for a hub model.

    Raises:
        ModelError: when a local source does not exist.
    """
    folder, name, gguf = _resolve(source)
    if not isinstance(folder, Path):
        return name
    endings = (".safetensors", ".bin", ".json", ".jinja", ".model")
    files = [folder / gguf] if gguf else sorted(f for f in folder.iterdir() if f.suffix in endings)
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as content:
            while chunk := content.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _load(name: str, what: str, folder: str | Path, **kwargs: Any) -> Any:
    import transformers

    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    auto: Any = {
        "tokenizer": transformers.AutoTokenizer,
        "config": transformers.AutoConfig,
        "model": transformers.AutoModelForCausalLM,
    }[what]
    try:
        return auto.from_pretrained(str(folder), **kwargs)
    except Exception as error:  # transformers raises many kinds, for offline, gated, unknown and broken alike
        offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
        hint = " (HF_HUB_OFFLINE is set)" if offline and not Path(folder).exists() else ""
        raise ModelError(
            f"the {what} of {name!r} can't be loaded{hint}: {_first_line(error)}; check the name, the network, or "
            "give a local folder"
        ) from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".;")


def _dtype(asked: torch.dtype | str | None, device: str, config: Any, gguf: str | None) -> torch.dtype:
    if isinstance(asked, torch.dtype):
        return asked
    if asked is not None:
        found = getattr(torch, str(asked), None)
        if not isinstance(found, torch.dtype) or not found.is_floating_point:
            raise ModelError(f"{asked!r} is not a floating-point dtype; use float32, bfloat16, float16 or float64")
        return found
    if not gguf and _parameters(config) < SMALL_MODEL:
        return torch.float32
    return native_dtype(device)


def native_dtype(device: str) -> torch.dtype:
    """The smallest dtype that ``device`` multiplies natively: bfloat16 by emulation is slower than float32."""
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return torch.bfloat16 if device == "cpu" and (native() or amx()) else torch.float32


def _parameters(config: Any) -> int:
    text = config.get_text_config()
    width = int(getattr(text, "hidden_size", 0) or 0)
    return width * (12 * width * int(getattr(text, "num_hidden_layers", 0) or 0) + int(text.vocab_size or 0))
