"""load_model: a chat model from a hub id, a folder, a .gguf file, the embedded model, or a TransformerLens model."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import ModelError
from .allocator import loading
from .gguf import check_header, first_line, plain_weights, through_cache, unpacked
from .model import HookedChatModel

SMALL_MODEL = 50_000_000  # below this many parameters float32 costs nothing and is exact
NO_TEMPLATE = (
    "{} has a tokenizer without a chat template: it is a base model or its folder is incomplete; use the chat "
    "('instruct') version, or give a template (chat_template=FILE, --chat-template)"
)
DENSEST = 16  # more parameters per byte than any checkpoint has: transformers allocates what a config asks for first


def load_model(
    source: Any = "organism",
    *,
    dtype: torch.dtype | str | None = None,
    device: str | None = None,
    device_map: Any = None,
    system: str | None = None,
    chat_template: str | Path | None = None,
    template_options: Mapping[str, Any] | Sequence[str] | None = None,
    reply_prefix: str = "",
    date: str | None = None,
    thought: Sequence[str] = (),
    tokenizer: Any = None,
    trust_remote_code: bool = False,
    cache: bool = True,
) -> HookedChatModel:
    """Load a chat model with hook points.

    Nothing is installed or started, and no setting of the process changes. Of a vision-language checkpoint, the text
    model is loaded.

    Args:
        source: "organism" (the embedded model), a Hugging Face id, a local folder, a .gguf file (dequantized by
            transformers), or a ``TransformerBridge`` or ``HookedTransformer`` that you already have.
        dtype: "float32", "bfloat16" ...; by default float32 for small models and where bfloat16 is not native.
        device: "cuda", "cpu" ...; by default a GPU if there is one.
        device_map: e.g. "auto" to spread over several GPUs (then no ``device``).
        system: system prompt of every conversation.
        chat_template: Jinja text, or a file with it, in place of the tokenizer's own.
        template_options: variables that the template reads, as a mapping or NAME=VALUE texts. Where it can skip the
            thought before an answer (``enable_thinking``), thoughts are skipped unless this is set here.
        reply_prefix: text that every reply begins with, such as a closed thought; part of the prompt.
        date: ISO date for templates that print today's date; by default the day of loading.
        thought: begin and end marker of a thought, unless they are known (``<think>``, gpt-oss's ...).
        tokenizer: the tokenizer to use; by default the checkpoint's own.
        trust_remote_code: run code that comes with the checkpoint.
        cache: keep the weights of a .gguf file as dequantization gave them (never edited ones), and read them there the
            next time: in ``~/.cache/refusal-lens``, or where ``REFUSAL_LENS_CACHE`` says ("off": nowhere).

    Raises:
        ModelError: the source can't be loaded or is not a chat model; the message gives the remedy.

    Example:
        >>> model = rl.load_model("organism")
        >>> model.n_layers, model.d_model, model.basis
        (5, 96, 'raw')
    """
    chat: dict[str, Any] = {"system": system, "chat_template": chat_template, "template_options": template_options}
    chat |= {"reply_prefix": reply_prefix, "date": date, "thought": thought}
    if not isinstance(source, (str, Path)):
        return HookedChatModel(source, tokenizer, **chat)
    folder, name, gguf = _resolve(source)
    device = _device(device)

    def read(where: str | Path, file: str | None) -> tuple[Any, Any]:
        facts = {"trust_remote_code": trust_remote_code, "gguf_file": file}
        return _read(name, where, tokenizer, bool(chat_template), dtype, device, device_map, facts)

    with loading():
        if gguf:
            dtype = _dtype(dtype, device, None, gguf)  # a small model's, too, where it comes from the cache
        if gguf and cache:
            hf, tok = through_cache(Path(folder) / gguf, dtype, read, tokenizer is None)
        else:
            hf, tok = read(folder, gguf)
        if device_map is None:
            hf.to(device)
        if gguf or not getattr(tok, "name_or_path", ""):
            tok.name_or_path = str(folder)
        return HookedChatModel(_boot(name, folder, hf, tok, None if device_map else device), tok, name, **chat)


def _read(
    name: str,
    folder: str | Path,
    tokenizer: Any,
    has_template: bool,
    dtype: torch.dtype | str | None,
    device: str,
    device_map: Any,
    facts: dict[str, Any],
) -> tuple[Any, Any]:
    gguf = facts["gguf_file"]
    if gguf:
        check_header(Path(folder) / gguf)
    tok = tokenizer or _load(name, "tokenizer", folder, **facts)
    if not (has_template or getattr(tok, "chat_template", None)):
        raise ModelError(NO_TEMPLATE.format(name))
    config = _load(name, "config", folder, **facts)
    if isinstance(folder, Path):
        _check_folder(folder, gguf, config)
    hf = _load(
        name,
        "model",
        folder,
        config=None if gguf else config,
        dtype=_dtype(dtype, device, config, gguf),
        device_map=device_map,
        attn_implementation="eager",
        quantization_config=plain_weights() if gguf else None,
        **facts,
    )
    return unpacked(hf) if gguf else hf, tok


def _boot(name: str, folder: str | Path, hf: Any, tokenizer: Any, device: str | None) -> Any:
    """A bridge around ``hf``, or around its text model: TransformerLens installs packages for other modalities."""
    from transformer_lens.model_bridge import TransformerBridge

    text = _text_model(name, hf)
    if not text.config.architectures:
        text.config.architectures = [type(text).__name__]
    try:
        bridge = TransformerBridge.boot_transformers(
            str(folder), hf_model=text, tokenizer=tokenizer, dtype=text.dtype, device=device
        )
    except Exception as error:
        raise ModelError(f"TransformerLens can't wrap {name} ({type(hf).__name__}): {first_line(error)}") from error
    bridge.original_model.requires_grad_(False)  # transformer-lens 3.9 switches it on again
    return bridge


def _text_model(name: str, hf: Any) -> Any:
    """The language model of a vision-language model, on the same weights; ``hf`` itself where it is one."""
    import transformers

    text = hf.config.get_text_config()
    if text is hf.config:
        return hf
    alone: Any = None
    if type(text) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        with torch.device("meta"):
            alone = transformers.AutoModelForCausalLM.from_config(text, dtype=hf.dtype, attn_implementation="eager")
    decoder = hf.get_decoder()
    if alone is None or type(alone.base_model) is not type(decoder):
        raise ModelError(
            f"{name} is a {type(hf).__name__}, and transformers can't run its text model alone: give a text checkpoint"
        )
    setattr(alone, alone.base_model_prefix, decoder)
    alone.set_output_embeddings(hf.get_output_embeddings())
    alone.config.name_or_path, alone.config.architectures = hf.config.name_or_path, [type(alone).__name__]
    alone.generation_config = hf.generation_config
    return alone.eval()


def _device(asked: str | None) -> str:
    """Where the model goes, if this machine has it."""
    device = asked or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises each, by kind of device
        raise ModelError(f"there is no device {device!r} on this machine ({first_line(error)}); use 'cpu'") from error
    return device


def _check_folder(folder: Path, gguf: str | None, config: Any) -> None:
    """Refuse an index that points out of its folder, and a config of a far larger model than the files hold."""
    files = [folder / gguf] if gguf else [f for f in folder.iterdir() if f.suffix in (".safetensors", ".bin", ".pt")]
    text, held = config.get_text_config(), sum(file.stat().st_size for file in files)
    sizes = [getattr(text, n, 0) for n in ("hidden_size", "intermediate_size", "num_hidden_layers")]
    width, inner, layers = (size if isinstance(size, int) else 0 for size in sizes)
    asked = _parameters(config) + 2 * width * inner * layers
    if files and asked > DENSEST * held:
        raise ModelError(
            f"the config of {folder.name} asks for {asked:,} parameters, and its weights are {held:,} bytes"
        )
    for index in folder.glob("*.index.json"):
        try:
            shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise ModelError(f"{index} is not an index of weight files ({type(error).__name__})") from error
        for shard in shards:
            if not isinstance(shard, str) or Path(shard).name != shard or not (index.parent / shard).is_file():
                raise ModelError(f"{index} points to {shard!r}, which is not in this folder")


def _resolve(source: str | Path) -> tuple[str | Path, str, str | None]:
    """(what transformers loads, label, gguf file name)."""
    text = str(source)
    if text == "organism":
        from ..data.organism import MODEL_DIR

        return MODEL_DIR, "organism", None
    if not text.strip():
        raise ModelError("the model has no name: give a Hugging Face id, a folder, a .gguf file or 'organism'")
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


def check_source(source: str | Path) -> None:
    """Read the config of a hub model, before anything that takes long; errors as in ``load_model``."""
    folder, name, _ = _resolve(source)
    if not isinstance(folder, Path):
        _load(name, "config", folder)


def source_digest(source: str | Path) -> str:
    """SHA-256 of a local checkpoint's weights, tokenizer and config; the id itself for a hub model."""
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
    """The tokenizer, config or model by transformers, which would make up weights that are missing."""
    import transformers

    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    kinds = {"tokenizer": "AutoTokenizer", "config": "AutoConfig", "model": "AutoModelForCausalLM"}
    auto: Any = getattr(transformers, kinds[what])
    try:
        if what != "model":
            return auto.from_pretrained(str(folder), **kwargs)
        model, info = auto.from_pretrained(str(folder), output_loading_info=True, **kwargs)
    except Exception as error:  # transformers raises many kinds, for offline, gated, unknown and broken alike
        offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
        hint = " (HF_HUB_OFFLINE is set)" if offline and not Path(folder).exists() else ""
        raise ModelError(
            f"the {what} of {name!r} can't be loaded{hint}: {first_line(error)}; check the name, the network, or "
            "give a local folder"
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"the weights of {name!r} lack {missing[0]} and {len(missing) - 1} more that its config asks for: "
            "download them again"
        )
    return model


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
    width, layers, rows = (getattr(text, n, 0) or 0 for n in ("hidden_size", "num_hidden_layers", "vocab_size"))
    return int(width * (12 * width * layers + rows))
