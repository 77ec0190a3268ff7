"""Texts with the tokens to score, as batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data.files import check_text
from ..data.prompts import PromptsLike, as_prompts
from .batching import by_length
from .chat import Spans, Tokens, no_regions, padded
from .model import HookedChatModel

LOGIT_ENTRIES = 1 << 26  # logits held at a time: 256 MB in float32
BATCH_TOKENS = 4096  # of one batch


@dataclass(frozen=True)
class Scored:
    """One text as token ids, with the tokens whose loss counts.

    Attributes:
        ids: all tokens, template included.
        first: index of the first token whose loss counts (at least 1: the first token has no prediction).
        spans: the prompt's regions, for interventions at some of them; None for text without any.
    """

    ids: tuple[int, ...]
    first: int
    spans: Spans | None = None


def text_tokens(model: HookedChatModel, texts: PromptsLike, max_length: int = 256) -> list[Scored]:
    """Plain text, no template; every token but the first counts (the paper's Pile rows).

    Texts of fewer than two tokens are left out.
    """
    bos, found = model.tokenizer.bos_token_id, []
    # As the tokenizer itself would begin a document, where it does.
    begin = [bos] if bos is not None and model.tokenizer("")["input_ids"][:1] == [bos] else []
    for text in as_prompts(texts):
        check_text(text, f"the text {text[:60]!a}")
        ids = [*begin, *model.tokenizer(text, add_special_tokens=False)["input_ids"]][:max_length]
        if len(ids) > 1:
            found.append(Scored(tuple(ids), 1))
    return found


def completion_tokens(
    model: HookedChatModel, prompts: PromptsLike, completions: PromptsLike, max_length: int = 512
) -> list[Scored]:
    """Tokenize chat-formatted prompts with completions; only the completion's tokens count (the paper's masking).

    Empty completions are left out.
    """
    found = []
    for prompt, completion in zip(as_prompts(prompts), as_prompts(completions), strict=True):
        head = model.chat.render(prompt)
        encoding = model.tokenizer(head + completion, add_special_tokens=False, return_offsets_mapping=True)
        ids = tuple(encoding["input_ids"])[:max_length]
        starts = [start for start, _ in encoding["offset_mapping"]][:max_length]
        first = next((i for i, start in enumerate(starts) if start >= len(head)), len(ids))
        if 0 < first < len(ids):
            found.append(Scored(ids, first))
    return found


def reply_tokens(model: HookedChatModel, prompts: PromptsLike, replies: PromptsLike, suffix: str = "") -> list[Scored]:
    """Prompts (with a suffix) and replies as they stood while the replies were generated: an intervention at some
    positions acts on the same tokens. Empty replies stay, without a token that counts."""
    found = []
    for prompt, reply in zip(as_prompts(prompts), as_prompts(replies), strict=True):
        encoded = model.chat.encode(prompt, suffix)
        n, ids = len(encoded.ids), tuple(model.tokenizer(encoded.text + reply, add_special_tokens=False)["input_ids"])
        if ids[:n] != encoded.ids:  # the two merge in text, and did not while the reply was generated
            ids = encoded.ids + tuple(model.tokenizer(reply, add_special_tokens=False)["input_ids"])
        found.append(Scored(ids, n, encoded.spans))
    return found


def own_completions(
    model: HookedChatModel,
    prompts: PromptsLike,
    max_new_tokens: int = 64,
    on_batch: Callable[[int], None] | None = None,
) -> list[Scored]:
    """Generate the model's greedy replies without intervention, as ``completion_tokens`` (the paper's on-distribution
    rows)."""
    requests = as_prompts(prompts)
    return completion_tokens(model, requests, model.generate(requests, max_new_tokens, on_batch=on_batch))


def scored_batches(model: HookedChatModel, texts: Sequence[Scored]) -> Iterator[Tokens]:
    """Left-padded batches of similar length that keep the logits of what counts small."""
    budget = max(1, LOGIT_ENTRIES // model.d_vocab)
    lengths = [len(text.ids) for text in texts]
    kept = max((len(text.ids) - text.first for text in texts), default=0) + 1

    def fits(n: int, width: int, real: int) -> bool:
        return n <= 64 and n * min(width, kept) <= budget and n * width <= BATCH_TOKENS

    for rows in by_length(lengths, fits):
        spans = [texts[i].spans or no_regions(texts[i].first) for i in rows]
        yield padded([texts[i].ids for i in rows], spans, model.chat.pad_id, rows).to(model.device)


def predictions(
    read: Callable[[int], Tensor], tokens: Tokens, texts: Sequence[Scored]
) -> Iterator[tuple[Float[Tensor, "n vocab"], Int[Tensor, "n"]]]:
    """Of each text of a batch, the logits that predict the tokens that count, and these tokens; ``read`` gives the
    logits of a number of last positions."""
    counts, end = [len(text.ids) - text.first for text in texts], tokens.ids.shape[1]
    logits = read(max(counts) + 1)
    for row, n in enumerate(counts):
        # Position p predicts token p + 1; rows end at the last position.
        yield logits[row, -n - 1 : -1], tokens.ids[row, end - n :]


def batch_nll(model: HookedChatModel, tokens: Tokens, texts: Sequence[Scored]) -> Tensor:
    """Negative log-likelihood of the tokens that count, summed over each text of a batch."""
    found = predictions(partial(model.logits, tokens), tokens, texts)
    return torch.stack([-x.double().log_softmax(-1).gather(-1, ids[:, None]).sum() for x, ids in found]).cpu()


def token_texts(model: HookedChatModel, tokens: Tokens) -> tuple[tuple[str, ...], ...]:
    """Text of each real token."""
    rows = [ids[mask].tolist() for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]
    known = {token: model.tokenizer.decode([token]) for token in set().union(*rows)}
    return tuple(tuple(known[token] for token in row) for row in rows)
