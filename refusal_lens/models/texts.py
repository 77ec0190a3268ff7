"""TODO."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .chat import Spans, Tokens
from .model import HookedChatModel

LOGIT_ENTRIES = 1 << 26  # logits held at a time: 256 MB in float32


@dataclass(frozen=True)
class Scored:
    """One text as token ids, of which some count.

    Attributes:
        ids: all tokens, template included.
        first: index of the first token whose loss counts (at least 1: the first token has no prediction).
    """

    ids: tuple[int, ...]
    first: int


def text_tokens(model: HookedChatModel, texts: Sequence[str], max_length: int = 256) -> list[Scored]:
    """Plain text, no template; every token but the first counts (the paper's Pile rows).

    Texts of fewer than two tokens are left out.
    """
    bos = model.tokenizer.bos_token_id
    found = []
    for text in texts:
        ids = list(model.tokenizer(text, add_special_tokens=False)["input_ids"])
        # As the tokenizer itself would begin a document, where it does.
        if bos is not None and model.tokenizer("")["input_ids"][:1] == [bos]:
            ids = [bos, *ids]
        if len(ids := ids[:max_length]) > 1:
            found.append(Scored(tuple(ids), 1))
    return found


def completion_tokens(
    model: HookedChatModel, prompts: Sequence[str], completions: Sequence[str], max_length: int = 512
) -> list[Scored]:
    """Chat-formatted prompt and completion; only the completion's tokens count (the paper's masking).

    Empty completions are left out.
    """
    found = []
    for prompt, completion in zip(prompts, completions, strict=True):
        head = model.chat.render(prompt)
        encoding = model.tokenizer(head + completion, add_special_tokens=False, return_offsets_mapping=True)
        ids = tuple(encoding["input_ids"])[:max_length]
        starts = [start for start, _ in encoding["offset_mapping"]][:max_length]
        first = next((i for i, start in enumerate(starts) if start >= len(head)), len(ids))
        if 0 < first < len(ids):
            found.append(Scored(ids, first))
    return found


def own_completions(
    model: HookedChatModel,
    prompts: Sequence[str],
    max_new_tokens: int = 64,
    on_batch: Callable[[int], None] | None = None,
) -> list[Scored]:
    """The model's own greedy replies without intervention, as ``completion_tokens`` (the paper's on-distribution
    rows)."""
    return completion_tokens(model, prompts, model.generate(list(prompts), max_new_tokens, on_batch=on_batch))


def _batches(model: HookedChatModel, texts: Sequence[Scored]) -> Iterator[tuple[list[int], Tokens]]:
    """(indices, left-padded tokens) in batches of similar length that keep the logits small."""
    budget = max(1, LOGIT_ENTRIES // model.d_vocab)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].ids))
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and stop - start < 64 and (stop + 1 - start) * len(texts[order[stop]].ids) <= budget:
            stop += 1
        rows = order[start:stop]
        longest = len(texts[rows[-1]].ids)
        ids = torch.full((len(rows), longest), model.chat.pad_id, dtype=torch.long)
        mask = torch.zeros((len(rows), longest), dtype=torch.bool)
        for row, i in enumerate(rows):
            ids[row, longest - len(texts[i].ids) :] = torch.tensor(texts[i].ids)
            mask[row, longest - len(texts[i].ids) :] = True
        spans = tuple(_flat(texts[i].first) for i in rows)
        yield rows, Tokens(ids.to(model.device), mask.to(model.device), spans, tuple(rows))
        start = stop


def _flat(length: int) -> Spans:
    """The tokens whose loss does not count as one region; those that count follow as the reply."""
    return Spans((0, 0), (0, 0), (0, length), (length, length), (length, length))


def _batch_nll(model: HookedChatModel, tokens: Tokens, texts: Sequence[Scored]) -> Tensor:
    logits = model.logits(tokens, last_only=False)
    sums = []
    for row, text in zip(range(len(texts)), texts, strict=True):
        count = len(text.ids) - text.first
        # Position p predicts token p + 1; rows end at the last position.
        scores = logits[row, -count - 1 : -1].double().log_softmax(-1)
        targets = tokens.ids[row, -count:]
        sums.append(-scores.gather(-1, targets[:, None]).sum())
    return torch.stack(sums).cpu()
