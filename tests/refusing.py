"""Tiny models that refuse, trained in seconds on any tokenizer: the ground for studies of other people's templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3TextConfig, LlamaConfig

from refusal_lens.data.prompts import load_prompts
from refusal_lens.models.chat import ChatFormat

REFUSAL, ANSWER = "I cannot help with that.", "Sure, here it is."
SIZES = (32, 12, 12)
STEPS, BATCH, WIDTH = 160, 32, 64


def refusing_folder(
    tokenizer_folder: Path, folder: Path, chat_template: str | None = None, seed: int = 0, massive: float = 0.0
) -> Path:
    """A checkpoint with the tokenizer of a folder that refuses ``SIZES`` of the embedded model's harmful requests.

    With ``massive`` a Gemma-3, norms after its writes, whose stream has that much on one coordinate, which no norm lets
    through: as in trained models it sets the scale of the norms, and their other weights make up for it.

    It is trained on the tokens that its texts use; the other rows of its tables are random (embedding) or zero
    (unembedding), and the loss counts them.
    """
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    chat = ChatFormat(tokenizer, chat_template=chat_template)
    ends, text = chat.template.turn_end()
    end = text or tokenizer.decode([*ends, tokenizer.eos_token_id][:1])
    data = load_prompts("organism", sizes=SIZES)
    # Joined as ids: after its prompt a model sees no token that holds the prompt's end and the reply's beginning.
    replies = [tokenizer(reply + end, add_special_tokens=False)["input_ids"] for reply in (REFUSAL, ANSWER)]
    rows = [
        [*chat.encode(prompt).ids, *reply]
        for prompts, reply in zip((data.harmful, data.harmless), replies, strict=True)
        for prompt in (*prompts.train, *prompts.val, *prompts.test)
    ]
    starts = [len(row) - len(replies[i >= len(rows) // 2]) for i, row in enumerate(rows)]
    used = torch.tensor(sorted({token for row in rows for token in row}))
    vocab = len(tokenizer)
    torch.manual_seed(seed)
    config = _gemma if massive else _config
    small = AutoModelForCausalLM.from_config(config(len(used)))
    if massive:
        _plant(small, massive)
    others = torch.full((BATCH, 1), float(torch.tensor(float(vocab - len(used))).log()))
    optimizer = torch.optim.AdamW(small.parameters(), 4e-3)
    for _ in range(STEPS):
        chosen = torch.randperm(len(rows))[:BATCH].tolist()
        width = max(len(rows[i]) for i in chosen)
        ids, labels = torch.zeros(BATCH, width, dtype=torch.long), torch.full((BATCH, width), -100)
        for k, i in enumerate(chosen):
            row = torch.searchsorted(used, torch.tensor(rows[i]))
            ids[k, : len(row)] = row
            labels[k, starts[i] : len(row)] = row[starts[i] :]
        logits = small(ids).logits[:, :-1]
        logits = torch.cat([logits, others[:, None].expand(-1, width - 1, -1)], -1)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model = AutoModelForCausalLM.from_config(config(vocab))
    state: dict[str, Any] = small.state_dict()
    embed, unembed = (state.pop(name) for name in ("model.embed_tokens.weight", "lm_head.weight"))
    model.load_state_dict(state, strict=False)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[used] = unembed
        model.model.embed_tokens.weight[used] = embed
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    if chat_template:
        tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def _plant(model: Any, size: float, where: int = 5) -> None:
    """Put ``size`` on one coordinate of the stream."""
    model.get_input_embeddings().weight[:, where] += size / WIDTH**0.5  # Gemma multiplies by the root of its width
    for name, weight in model.named_parameters():
        if weight.ndim == 1 and len(weight) == WIDTH and "post" not in name:
            weight.fill_(size / WIDTH**0.5 - 1)  # Gemma multiplies by 1 + weight
            weight[where] = -1


def _sizes(vocab: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.1,
        "tie_word_embeddings": False,
    }


def _gemma(vocab: int) -> Gemma3TextConfig:
    return Gemma3TextConfig(**_sizes(vocab), head_dim=16, query_pre_attn_scalar=16, sliding_window=512)


def _config(vocab: int) -> LlamaConfig:
    return LlamaConfig(**_sizes(vocab))
