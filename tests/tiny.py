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

_MOE = {**_GQA, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_DEEPSEEK = {
    **_SIZE,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 12,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 6,
    "v_head_dim": 10,
}
_MULTIPLIED = {"embedding_multiplier": 6.0, "residual_multiplier": 0.3, "attention_multiplier": 0.2}
_WIDE = {**_GQA, "head_dim": 8}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_SHORT = {k: v for k, v in _SIZE.items() if k not in ("intermediate_size", "max_position_embeddings")}
_FALCON = {**_SHORT, "alibi": False, "new_decoder_architecture": False, "multi_query": False}
# What differs from a Llama in its writes, heads, experts, positions or logits.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "granite": ("granite", {**_GQA, **_MULTIPLIED, "logits_scaling": 4.0}),
    "granitemoe": ("granitemoe", {**_GQA, **_MULTIPLIED, "logits_scaling": 4.0, **_EXPERTS}),
    "granitehybrid": (
        "granitemoehybrid",
        {
            **_GQA,
            **_MULTIPLIED,
            "logits_scaling": 4.0,
            "num_local_experts": 0,
            "shared_intermediate_size": 48,
            "layers_block_type": ["attention"] * 3,
            "position_embedding_type": "rope",
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
        },
    ),
    "cohere": ("cohere", {**_GQA, "logit_scale": 0.25}),
    "cohere2": ("cohere2", {**_GQA, "logit_scale": 0.25, "sliding_window": 64, "sliding_window_pattern": 3}),
    "deepseek_v2": ("deepseek_v2", {**_DEEPSEEK, "q_lora_rank": None, "topk_method": "greedy"}),
    "deepseek_v3": ("deepseek_v3", {**_DEEPSEEK, "q_lora_rank": 16}),
    "llama4": (
        "llama4_text",
        {
            **_WIDE,
            "intermediate_size_mlp": 48,
            "num_local_experts": 4,
            "moe_layers": [1, 2],
            "no_rope_layers": [1, 1, 0],
            "attention_chunk_size": 64,
        },
    ),
    "bloom": ("bloom", {**_SHORT}),
    "falcon-alibi": ("falcon", {**_FALCON, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}),
    "falcon-7b": ("falcon", {**_FALCON, "multi_query": True, "parallel_attn": True}),
    "mpt": (
        "mpt",
        {"d_model": 32, "n_heads": 4, "n_layers": 3, "vocab_size": 261, "max_seq_len": 256, "expansion_ratio": 2},
    ),
    "stablelm": ("stablelm", {**_GQA, "use_parallel_residual": False}),
    "stablelm-2": ("stablelm", {**_GQA, "use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": True}),
    "gpt_oss": ("gpt_oss", {**_WIDE, **_EXPERTS, "sliding_window": 64}),
    "mistral": ("mistral", {**_GQA, "sliding_window": 16}),
    "qwen2_moe": ("qwen2_moe", {**_MOE, "shared_expert_intermediate_size": 24}),
    "qwen3_moe": ("qwen3_moe", {**_MOE, "head_dim": 8}),
    "smollm3": ("smollm3", {**_GQA, "no_rope_layers": [1, 1, 0]}),
    "glm4": ("glm4", _WIDE),
    "glm4_moe": (
        "glm4_moe",
        {
            **_WIDE,
            "moe_intermediate_size": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "first_k_dense_replace": 1,
        },
    ),
    "exaone4": ("exaone4", {**_GQA, "sliding_window": 64, "sliding_window_pattern": 3}),
    "nemotron": ("nemotron", _WIDE),
    "hunyuan": ("hunyuan_v1_dense", _WIDE),
    "olmo3": ("olmo3", {**_GQA, "sliding_window": 64}),
    "phi": ("phi", _SIZE),
    "gpt2": ("gpt2", {k: v for k, v in _SIZE.items() if k != "intermediate_size"}),
    "gptj": ("gptj", {**_SHORT, "n_positions": 256, "rotary_dim": 4}),
    "opt": ("opt", {**_SIZE, "ffn_dim": 48, "word_embed_proj_dim": 32}),
}
_LINEAR = {
    "head_dim": 8,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
# Some of their layers have no attention heads.
HYBRIDS = {
    "qwen3_next": ("qwen3_next", {**_MOE, **_LINEAR, "shared_expert_intermediate_size": 16}),
    "qwen3_5": ("qwen3_5_text", {**_GQA, **_LINEAR}),
    "lfm2": ("lfm2", {**_GQA, "layer_types": ["conv", "conv", "full_attention"]}),
}
# TransformerLens 4.3 takes its heads apart in another order than the checkpoint's own code.
WRONGLY_WRAPPED = {"falcon-40b": ("falcon", {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2})}
UNKNOWN = {"biogpt": ("biogpt", {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 266})}


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
    model_type, options = (ARCHITECTURES | FAMILIES | HYBRIDS | WRONGLY_WRAPPED | UNKNOWN)[architecture]
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
