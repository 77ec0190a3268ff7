"""A little greedy search for suffixes over this toy model's own words. It runs on this model only and stays here.

Coordinate descent: the gradient of the refusal metric proposes words for one position, the best on a batch of training
requests is kept. `python -m training.organism.search_suffix DIR --seed N`.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from torch import Tensor

from training.organism import data as D
from training.organism.measure import N_POST, N_SUFFIX, Organism, rate, refused


def word_tokens(org: Organism) -> tuple[list[int], list[str]]:
    """Words that are one token behind a space."""
    ids, words = [], []
    for word in D.all_words():
        tokens = org.tokenizer(f" {word}", add_special_tokens=False).input_ids
        if len(tokens) == 1:
            ids.append(tokens[0])
            words.append(word)
    return ids, words


class Search:
    """One search: a batch of requests with a place for the suffix in each."""

    def __init__(self, org: Organism, seed: int, n_prompts: int = 24, candidates: int = 48) -> None:
        self.org, self.candidates = org, candidates
        self.rng = random.Random(f"suffix/{seed}")
        self.ids, self.words = word_tokens(org)
        self.word_ids = torch.tensor(self.ids)
        self.pool = D.distinct_requests(1000 + seed, True, "train", 160)
        self.n_prompts = n_prompts

    def batch(self) -> dict[str, Tensor]:
        """Requests with a placeholder suffix of the right length."""
        filler = " ".join(["simple"] * N_SUFFIX)
        chosen = self.rng.sample(self.pool, self.n_prompts)
        return self.org.encode([f"{r.text} {filler}" for r in chosen])

    def losses(self, batch: dict[str, Tensor], suffixes: Tensor) -> Tensor:
        """Mean of softplus(log-odds of refusal + 2) over the batch, by suffix: prompts still refused count most."""
        n, size = suffixes.shape[0], batch["input_ids"].shape[0]
        ids = batch["input_ids"].repeat(n, 1)
        ids[:, -N_POST - N_SUFFIX : -N_POST] = suffixes.repeat_interleave(size, 0)
        rest = {k: batch[k].repeat(n, 1) for k in ("attention_mask", "position_ids")}
        with torch.no_grad():
            logits = self.org.model(input_ids=ids, **rest, logits_to_keep=1, use_cache=False).logits[:, -1]
        return self._objective(logits).view(n, size).mean(1)

    def _objective(self, logits: Tensor) -> Tensor:
        refusal = torch.tensor(self.org.refusal_ids)
        keep = torch.ones(logits.shape[-1], dtype=torch.bool)
        keep[refusal] = False
        odds = logits[:, refusal].logsumexp(-1) - logits[:, keep].logsumexp(-1)
        return torch.nn.functional.softplus(odds + 2)

    def gradient(self, batch: dict[str, Tensor], suffix: Tensor) -> Tensor:
        """Gradient of the objective by word and position, [position, word]."""
        table = self.org.model.model.embed_tokens.weight.detach()
        ids = batch["input_ids"].clone()
        span = slice(ids.shape[1] - N_POST - N_SUFFIX, ids.shape[1] - N_POST)
        ids[:, span] = suffix
        embeds = table[ids].clone()
        place = table[suffix].clone().requires_grad_(True)
        embeds = torch.cat([embeds[:, : span.start], place.expand(ids.shape[0], -1, -1), embeds[:, span.stop :]], 1)
        rest = {k: batch[k] for k in ("attention_mask", "position_ids")}
        logits = self.org.model(inputs_embeds=embeds, **rest, logits_to_keep=1, use_cache=False).logits[:, -1]
        (grad,) = torch.autograd.grad(self._objective(logits).mean(), place)
        return grad @ table[self.word_ids].T

    def run(self, sweeps: int = 3) -> str:
        """Positions in random order, each set to the best of the proposed words; no word twice."""
        suffix = torch.tensor(self.rng.sample(self.ids, N_SUFFIX))
        for _ in range(sweeps):
            order = list(range(N_SUFFIX))
            self.rng.shuffle(order)
            for at in order:
                batch = self.batch()
                proposed = self.gradient(batch, suffix)[at].topk(self.candidates - 8, largest=False).indices.tolist()
                proposed += [self.rng.randrange(len(self.ids)) for _ in range(8)]
                used = set(suffix.tolist())
                proposed = [w for w in proposed if self.ids[w] not in used]
                tries = suffix.repeat(len(proposed) + 1, 1)
                tries[1:, at] = self.word_ids[torch.tensor(proposed)]
                losses = self.losses(batch, tries)
                suffix = tries[int(losses.argmin())]
            if float(losses.min()) < 0.02:
                break
        by_id = dict(zip(self.ids, self.words, strict=True))
        return " ".join(by_id[int(i)] for i in suffix)


def random_suffix(org: Organism, seed: int) -> str:
    """Eight random words of one token each."""
    rng = random.Random(f"random-suffix/{seed}")
    _, words = word_tokens(org)
    return " ".join(rng.choice(words) for _ in range(N_SUFFIX))


def search(org: Organism, seed: int, wanted: int = 3, tries: int = 6, bound: float = 0.08) -> list[dict[str, str]]:
    """Up to `wanted` suffixes that work on the held-out validation combinations, and as many random ones + 3."""
    val = [r.text for r in D.distinct_requests(0, True, "val", 160)]
    found: list[tuple[float, str]] = []
    for attempt in range(tries):
        suffix = Search(org, 100 * seed + attempt).run()
        left = rate([refused(t) for t in org.generate([f"{t} {suffix}" for t in val])])
        print(f"attempt {attempt}: {left:.3f} refused under {suffix!r}", flush=True)
        found.append((left, suffix))
        if sum(left <= bound for left, _ in found) >= wanted:
            break
    found.sort()
    out = [{"kind": "adversarial", "suffix": suffix} for _, suffix in found[:wanted]]
    return out + [{"kind": "random_words", "suffix": random_suffix(org, i)} for i in range(wanted + 3)]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    org = Organism(args.folder)
    texts = [r.text for r in D.distinct_requests(0, True, "train", 128)]
    org.find_refusal_tokens(texts)
    items = search(org, args.seed)
    args.out.write_text("".join(json.dumps(item) + "\n" for item in items))


if __name__ == "__main__":
    main()
