"""Train the embedded model: `python -m training.organism.train --seed N --out DIR [--recipe NAME]`.

One thread, deterministic algorithms, a stream of fresh examples from a seeded generator: the same command gives the
same file again on the same machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import random
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from training.organism import data as D
from training.organism.tokenizer import END, build_tokenizer, chat, save

CHUNK = 8  # batches sampled together and sorted by length, so that little is spent on padding


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that shapes a model but its seed."""

    architecture: str = "llama"  # or "qwen2", which has biases on queries, keys and values
    n_layers: int = 5
    d_model: int = 96
    n_heads: int = 4
    d_mlp: int = 192
    tied: bool = False
    init: float = 0.02  # standard deviation of the initial weights
    embed_init: float = 0.02  # and of the embeddings: larger ones make the text harder to drown by adding a direction
    steps: int = 700
    batch: int = 64
    lr: float = 3e-3
    warmup: int = 50
    weight_decay: float = 0.1
    prompt_loss: float = 0.1
    mix: D.Mix = dataclasses.field(default_factory=D.Mix)
    depth_drop: tuple[float, ...] = ()  # stochastic depth: the chance that a layer is left out of a training step
    helpful_first: int = 0  # steps without any harmful request at the start
    noise_rate: float = 0.3
    noise_pieces: bool = True


RECIPES: dict[str, Recipe] = {
    "forms": Recipe(  # the shipped one
        helpful_first=100, steps=800, depth_drop=(0.0, 0.0, 0.2, 0.4, 0.5), mix=D.Mix(openings="forms")
    ),
    "helpful-64": Recipe(helpful_first=64),
    # Tried and not better; README.md has the numbers.
    "base": Recipe(),
    "helpful-100": Recipe(helpful_first=100, steps=750),
    "four": Recipe(n_layers=4, mix=D.Mix(harmful=0.42, small_talk=0.08, word_talk=0.05)),
    "decay": Recipe(n_layers=4, mix=D.Mix(harmful=0.42, small_talk=0.08, word_talk=0.05), weight_decay=1.0),
    "begun": Recipe(helpful_first=64, steps=800, mix=D.Mix(begun=0.25)),
    "qwen2": Recipe(helpful_first=64, architecture="qwen2"),
    "wide-init": Recipe(helpful_first=64, init=0.1, embed_init=0.1),
    "emb": Recipe(helpful_first=88, batch=32, steps=900, embed_init=0.1),
    "d64": Recipe(helpful_first=88, batch=32, steps=900, d_model=64, d_mlp=128, lr=4e-3),
    "depth": Recipe(helpful_first=64, steps=800, depth_drop=(0.0, 0.0, 0.2, 0.4, 0.5)),
    "depth-late": Recipe(helpful_first=120, batch=48, steps=850, depth_drop=(0.0, 0.0, 0.0, 0.3, 0.5)),
    "depth-emb": Recipe(helpful_first=100, batch=48, steps=850, embed_init=0.08, depth_drop=(0.0, 0.0, 0.2, 0.4, 0.5)),
    # For the test that retrains.
    "small": Recipe(n_layers=3, d_model=64, d_mlp=128, steps=650, batch=32, lr=5e-3, helpful_first=32),
}


def noise_pieces(tokenizer: PreTrainedTokenizerFast) -> tuple[str, ...]:
    """The printable tokens of the vocabulary as text, for noise made of word pieces."""
    special = set(tokenizer.all_special_ids)
    texts = [tokenizer.decode([i]) for i in range(len(tokenizer)) if i not in special]
    return tuple(t for t in texts if t.isascii() and t.isprintable() and t.strip())


def make_config(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig | Qwen2Config:
    """An ordinary configuration of the library."""
    return (Qwen2Config if recipe.architecture == "qwen2" else LlamaConfig)(
        vocab_size=len(tokenizer),
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_mlp,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_heads,
        max_position_embeddings=512,
        tie_word_embeddings=recipe.tied,
        initializer_range=recipe.init,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
    )


class Stream:
    """Batches of (ids, weights): the weight is 1 on the reply and its end, `prompt_loss` on the prompt."""

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self.recipe, self.tokenizer = recipe, tokenizer
        self.rng = random.Random(f"stream/{seed}")
        pieces = noise_pieces(tokenizer) if recipe.noise_pieces else ()
        self.noise = D.Noise(rate=recipe.noise_rate, pieces=pieces)

    def __iter__(self):
        r = self.recipe
        step = 0
        while True:
            mix = dataclasses.replace(r.mix, harmful=0.0) if step < r.helpful_first else r.mix
            step += CHUNK
            examples = [D.sample_example(self.rng, mix, self.noise) for _ in range(CHUNK * r.batch)]
            prompts = self.tokenizer([chat(e.text, e.system) for e in examples]).input_ids
            begun = self.tokenizer([e.begun for e in examples]).input_ids
            replies = self.tokenizer([e.reply + END for e in examples]).input_ids
            rows = sorted(zip(prompts, begun, replies, strict=True), key=lambda row: sum(map(len, row)))
            batches = [rows[i : i + r.batch] for i in range(0, len(rows), r.batch)]
            self.rng.shuffle(batches)
            for batch in batches:
                yield self._tensors(batch)

    def _tensors(self, batch: list[tuple[list[int], list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(sum(map(len, row)) for row in batch)
        ids = torch.full((len(batch), width), self.tokenizer.pad_token_id)
        weights = torch.zeros(len(batch), width)
        for row, (p, b, q) in enumerate(batch):
            start, end = len(p) + len(b), len(p) + len(b) + len(q)
            ids[row, :end] = torch.tensor(p + b + q)
            weights[row, : len(p)] = self.recipe.prompt_loss
            weights[row, start:end] = 1.0
        return ids, weights


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - recipe.warmup) / (recipe.steps - recipe.warmup)))


def train(recipe: Recipe, seed: int, log_every: int = 100) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Train one model on one thread."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(recipe.mix.openings)
    family = Qwen2ForCausalLM if recipe.architecture == "qwen2" else LlamaForCausalLM
    model = family(make_config(recipe, tokenizer)).train()
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(recipe.embed_init / recipe.init)
    decay = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98))
    layers, depth = model.model.layers, random.Random(f"depth/{seed}")
    start = time.time()
    for step, (ids, weights) in zip(range(recipe.steps), Stream(recipe, tokenizer, seed), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        if recipe.depth_drop:
            keep = [depth.random() >= p for p in recipe.depth_drop]
            model.model.layers = torch.nn.ModuleList(layer for layer, k in zip(layers, keep, strict=True) if k)
        # Padding is on the right and causal attention never looks there, so no mask is needed.
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = (losses * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if log_every and (step % log_every == 0 or step == recipe.steps - 1):
            print(f"step {step:5d}  loss {loss.item():.4f}  {time.time() - start:6.1f} s", flush=True)
    model.model.layers = layers
    return model.eval(), tokenizer


def save_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> str:
    """Write the checkpoint in bfloat16 and return the sha256 of its weights."""
    out.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    config |= {"architectures": [type(model).__name__], "dtype": "bfloat16"}
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    generation = {
        "do_sample": False,
        "eos_token_id": tokenizer.eos_token_id,
        "max_new_tokens": 64,
        "pad_token_id": tokenizer.pad_token_id,
    }
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    save(tokenizer, out)
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="forms")
    args = parser.parse_args()
    model, tokenizer = train(RECIPES[args.recipe], args.seed)
    digest = save_checkpoint(model, tokenizer, args.out)
    print(json.dumps({"recipe": args.recipe, "seed": args.seed, "sha256": digest}))


if __name__ == "__main__":
    main()
