"""The models of the benchmark: the embedded one, one from disk, and random ones of a given size."""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from refusal_lens import HookedChatModel, load_model
from refusal_lens.data.organism import MODEL_DIR
from refusal_lens.models.allocator import keep_freed_memory
from refusal_lens.models.load import native_dtype

# hidden, layers, heads, key-value heads, MLP: Qwen2.5's.
SIZES = {
    "tiny": (256, 4, 4, 2, 512),
    "0.5b": (896, 24, 14, 2, 4864),
    "1.5b": (1536, 28, 12, 2, 8960),
    "3b": (2048, 36, 16, 2, 11008),
    "7b": (3584, 28, 28, 4, 18944),
}
VOCAB = 151936


def named(source: str, dtype: str | None = None) -> HookedChatModel:
    """``random:1.5b`` for random weights of that size (in what the machine multiplies), else as in ``load_model``."""
    keep_freed_memory()  # as the command line does
    if source.startswith("random:"):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        own = getattr(torch, dtype) if dtype else native_dtype(device)
        return random_model(source.removeprefix("random:"), dtype=own, device=device)
    return load_model(source, dtype=dtype)


def random_model(
    size: str,
    layers: int | None = None,
    width: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    vocab: int = VOCAB,
    device: str = "cpu",
) -> HookedChatModel:
    """Random weights with the embedded model's tokenizer, made in ``dtype`` at once: never a second copy.

    Those of a ``tiny`` model are drawn on the CPU in float32, so that they are the same on every device.
    """
    from transformer_lens.model_bridge import TransformerBridge

    hidden, n_layers, heads, kv_heads, mlp = SIZES[size]
    if width is not None:
        heads, kv_heads, mlp, hidden = width // 64, width // 64, 4 * width, width
    config = Qwen2Config(
        hidden_size=hidden,
        num_hidden_layers=layers or n_layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=mlp,
        vocab_size=vocab,
        tie_word_embeddings=size not in ("7b",),
        max_position_embeddings=4096,
        architectures=["Qwen2ForCausalLM"],
    )
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    torch.manual_seed(0)
    hf = _filled(config, dtype, device, same_everywhere=size == "tiny")
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        bridge = TransformerBridge.boot_transformers(
            folder, hf_model=hf, tokenizer=tokenizer, dtype=dtype, device=device
        )
    return HookedChatModel(bridge, tokenizer, name=f"random-{size}")


def _filled(config: Qwen2Config, dtype: torch.dtype, device: str, same_everywhere: bool) -> Any:
    """Random weights, some rows at a time: torch draws bfloat16 numbers through a float32 copy of the whole tensor."""
    with torch.device("meta"):
        hf = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    hf.to_empty(device=device)
    hf.model.rotary_emb = type(hf.model.rotary_emb)(config).to(device)
    hf.tie_weights()
    for name, parameter in hf.requires_grad_(False).named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            for rows in parameter.split(1024):
                rows.copy_(0.02 * torch.randn(rows.shape)) if same_everywhere else rows.normal_(0, 0.02)
    return hf.eval()


def plain_copy(model: HookedChatModel) -> Any:
    """The same weights, not copied, in a Hugging Face model without TransformerLens."""
    bridged = model.backend.hf
    with torch.device("meta"):
        config = copy.deepcopy(bridged.config)
        plain = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=model.dtype)
    found = {}
    for name, value in [*bridged.named_parameters(), *bridged.named_buffers()]:
        # The bridge's wrappers put their own words into the names.
        found[name.replace("._original_component", "").replace("_original_component.", "")] = value.detach()
    state = {
        name: found.get(name, found.get("model.embed_tokens.weight"))  # a tied unembedding has no name of its own
        for name in plain.state_dict()
    }
    plain.load_state_dict(state, assign=True)
    for name, buffer in list(plain.named_buffers()):
        if buffer.is_meta:  # not saved with the weights: the rotary frequencies
            owner, _, last = name.rpartition(".")
            plain.get_submodule(owner).register_buffer(last, found[name], persistent=False)
    # As in our backend: torch multiplies the strided slice of the last position row by row in bfloat16 on a CPU, which
    # would make the plain side ten times slower than it needs to be.
    plain.lm_head.register_forward_pre_hook(lambda module, given: (given[0].contiguous(),))
    return plain.eval().requires_grad_(False)
