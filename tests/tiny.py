"""Tiny random chat models of many architectures: the ground on which identities are tested."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SIZE = {
    "vocab_size": 261,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 258,
    "bos_token_id": 259,
    "eos_token_id": 257,
}
_GQA = {**_SIZE, "num_key_value_heads": 2}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**_GQA, "tie_word_embeddings": False}),
    "llama-tied": ("llama", {**_GQA, "tie_word_embeddings": True}),
    "llama-bias": ("llama", {**_GQA, "attention_bias": True, "mlp_bias": True}),
    "qwen2": ("qwen2", {**_GQA, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {**_GQA, "head_dim": 8}),
    "gemma2": ("gemma2", {**_GQA, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64}),
    "gemma3": ("gemma3_text", {**_GQA, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64}),
    "phi3": ("phi3", {**_GQA, "original_max_position_embeddings": 256}),
    "gpt_neox": ("gpt_neox", {**_SIZE, "rotary_pct": 0.5}),
    "olmo2": ("olmo2", {**_GQA}),
    "mixtral": ("mixtral", {**_GQA, "num_local_experts": 4, "num_experts_per_tok": 2}),
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and ChatML's special tokens."""
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tok = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens(["<|im_start|>", "<|im_end|>", "<pad>", "<s>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<|im_end|>", pad_token="<pad>")
    fast.chat_template = CHATML
    return fast


def tiny_hf(architecture: str, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any) -> Any:
    """A random Hugging Face model; norms and biases are random too, so that none is a silent identity."""
    model_type, options = ARCHITECTURES[architecture]
    config = CONFIG_MAPPING[model_type](**{**options, **overrides})
    config._experts_implementation = "eager"
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model.config.architectures = [type(model).__name__]
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(0.2 * noise)
            else:
                parameter.copy_(noise * (1.0 if "embed" in name else 0.4 / parameter.shape[-1] ** 0.25))
    return model.to(dtype)


@lru_cache(maxsize=64)
def tiny_folder(architecture: str, seed: int = 0) -> Path:
    """The same model as a checkpoint on disk."""
    folder = Path(tempfile.mkdtemp(prefix=f"tiny-{architecture}-"))
    tiny_hf(architecture, seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_bridge(architecture: str, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any) -> Any:
    """A TransformerBridge around ``tiny_hf``."""
    from transformer_lens.model_bridge import TransformerBridge

    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_folder("llama"))
    return TransformerBridge.boot_transformers(
        str(tiny_folder("llama")),
        hf_model=tiny_hf(architecture, seed, dtype, **overrides),
        tokenizer=tokenizer,
        dtype=dtype,
        device="cpu",
    )


def tiny_model(architecture: str, seed: int = 0, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Any:
    """A ``HookedChatModel`` of a tiny random architecture."""
    from refusal_lens import HookedChatModel

    return HookedChatModel(tiny_bridge(architecture, seed, dtype), name=f"tiny-{architecture}", **kwargs)
