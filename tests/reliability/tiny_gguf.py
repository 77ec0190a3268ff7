"""A tiny random chat model as a GGUF file: what the fuzzer mutates, and a check that GGUF loads at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quantize

from ..tiny import CHATML, tiny_tokenizer

WIDTH, INNER, LAYERS, HEADS, KV = 32, 64, 2, 4, 2


def write_tiny_gguf(path: Path, seed: int = 0, quantized: bool = False) -> Path:
    """Write a Qwen 2 of 2 layers with ``tests.tiny``'s tokenizer, matrices in Q8_0 if asked; returns the path."""
    tokenizer, rng = tiny_tokenizer(), np.random.default_rng(seed)
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    tokens = [*(token for token, _ in vocab), "he"]  # and what the one merge makes
    special = set(tokenizer.all_special_tokens) | {"<|im_start|>", "<s>"}
    writer = GGUFWriter(str(path), "qwen2")
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if t in special else TokenType.NORMAL for t in tokens])
    writer.add_token_merges(["h e"])
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_bos_token_id(tokens.index("<s>"))
    writer.add_pad_token_id(tokens.index("<pad>"))
    writer.add_chat_template(CHATML)

    def add(name: str, *shape: int) -> None:
        values = rng.normal(0, 0.3, shape).astype(np.float32)
        if quantized and len(shape) == 2:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)

    head = WIDTH // HEADS
    add("token_embd.weight", len(tokens), WIDTH)
    add("output_norm.weight", WIDTH)
    add("output.weight", len(tokens), WIDTH)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        add(f"{block}.attn_norm.weight", WIDTH)
        add(f"{block}.ffn_norm.weight", WIDTH)
        for name, size in (("q", WIDTH), ("k", KV * head), ("v", KV * head)):
            add(f"{block}.attn_{name}.weight", size, WIDTH)
            add(f"{block}.attn_{name}.bias", size)
        add(f"{block}.attn_output.weight", WIDTH, WIDTH)
        add(f"{block}.ffn_gate.weight", INNER, WIDTH)
        add(f"{block}.ffn_up.weight", INNER, WIDTH)
        add(f"{block}.ffn_down.weight", WIDTH, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
