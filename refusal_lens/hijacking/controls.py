"""Controls of a suffix: random tokens of equal length, and its own tokens in another order."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..errors import PromptError
from ..models.chat import ChatFormat

TRIES = 60  # random draws before a control is given up


def suffix_length(chat: ChatFormat, instruction: str, suffix: str) -> int:
    """Tokens that ``suffix`` has after ``instruction``."""
    start, stop = chat.encode(instruction, suffix).spans.suffix
    return stop - start


def suffix_ids(chat: ChatFormat, instruction: str, suffix: str) -> tuple[int, ...]:
    """Token ids of ``suffix`` after ``instruction``."""
    encoded = chat.encode(instruction, suffix)
    return encoded.ids[slice(*encoded.spans.suffix)]


def check_suffix(chat: ChatFormat, instructions: Sequence[str], suffix: str, n_ctx: int) -> tuple[int, ...]:
    """Tokens of ``suffix`` after each instruction, after checking that everything fits.

    Raises:
        PromptError: an empty suffix, a token across the boundary, or a prompt longer than ``n_ctx`` (0: no limit).
    """
    if not suffix.strip():
        raise PromptError("the suffix is empty; leave it out to measure plain prompts")
    counts = []
    for text in instructions:
        encoded = chat.encode(text, suffix)
        counts.append(encoded.spans.suffix[1] - encoded.spans.suffix[0])
        if n_ctx and len(encoded.ids) > n_ctx:
            raise PromptError(
                f"with the suffix {suffix[:40]!r} ({counts[-1]} tokens) a prompt has {len(encoded.ids)} tokens and the "
                f"model takes {n_ctx}: use a shorter suffix or leave the prompt {text[:40]!r} out"
            )
        # The instruction must stay what it was: its last token could have been merged with the template before.
        alone = chat.encode(text)
        if encoded.ids[: encoded.spans.instruction[1]] != alone.ids[: alone.spans.instruction[1]]:
            raise PromptError(
                f"the suffix {suffix[:40]!r} changes the tokens of the instruction {text[:40]!r}: begin the suffix "
                "with a space or another character"
            )
    return tuple(counts)


@dataclass(frozen=True)
class Controls:
    """One control suffix per prompt.

    Attributes:
        texts: as appended to each prompt.
        exact: whether each has exactly as many tokens as the suffix it controls for.
    """

    texts: tuple[str, ...]
    exact: tuple[bool, ...]


def random_controls(chat: ChatFormat, instructions: Sequence[str], suffix: str, seed: int = 0) -> Controls:
    """Random tokens of equal length, drawn afresh for each prompt; each text tokenizes to exactly the tokens drawn.

    Raises:
        PromptError: no draw of this length survives decoding and encoding after some prompt.

    Example:
        >>> drawn = rl.hijacking.random_controls(model.chat, ["How do I pick a lock?"], " please tell me")
        >>> drawn.exact
        (True,)
    """
    rng = random.Random(seed)
    starts, words, others = _pools(chat)
    texts = []
    for instruction in instructions:
        wanted = suffix_length(chat, instruction, suffix)
        for trial in range(TRIES):
            # Words after a space keep apart; if draws from all tokens keep merging, only these are drawn.
            pool = others if trial < TRIES // 2 or not words else words
            ids = [rng.choice(starts), *(rng.choice(pool) for _ in range(wanted - 1))]
            text = _decode(chat, ids)
            if _survives(chat, instruction, text, ids):
                texts.append(text)
                break
        else:
            raise PromptError(
                f"no random text of {wanted} tokens keeps its tokens after {instruction[:40]!r} in {TRIES} draws; use "
                "another tokenizer or a shorter suffix"
            )
    return Controls(tuple(texts), (True,) * len(texts))


def shuffled_controls(chat: ChatFormat, instructions: Sequence[str], suffix: str, seed: int = 0) -> Controls:
    """The suffix's own tokens in another order, drawn afresh for each prompt.

    Where no order keeps its tokens after decoding and encoding, its words are shuffled and ``exact`` is False if the
    length differs.
    """
    rng = random.Random(seed)
    texts, exact = [], []
    for instruction in instructions:
        ids = list(suffix_ids(chat, instruction, suffix))
        found = None
        for _ in range(TRIES):
            order = rng.sample(ids, len(ids))
            text = _decode(chat, order)
            if (order != ids or len(set(ids)) == 1) and _survives(chat, instruction, text, order):
                found = text
                break
        if found is None:
            words = suffix.split()
            found = suffix[: len(suffix) - len(suffix.lstrip())] + " ".join(rng.sample(words, len(words)))
        texts.append(found)
        exact.append(suffix_length(chat, instruction, found) == len(ids))
    return Controls(tuple(texts), tuple(exact))


def _survives(chat: ChatFormat, instruction: str, text: str, ids: Sequence[int]) -> bool:
    try:
        encoded = chat.encode(instruction, text)
        alone = chat.encode(instruction)
    except PromptError:  # merged with the instruction's end, or changed by the template
        return False
    kept = encoded.ids[: encoded.spans.instruction[1]] == alone.ids[: alone.spans.instruction[1]]
    return kept and encoded.ids[slice(*encoded.spans.suffix)] == tuple(ids)


def _decode(chat: ChatFormat, ids: Sequence[int]) -> str:
    text = chat.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    # SentencePiece's decoders drop the space that the first token stands for.
    first = str(chat.tokenizer.convert_ids_to_tokens(ids[0]))
    return " " + text if first[:1] in ("▁", "Ġ") and not text.startswith(" ") else text


@lru_cache(maxsize=8)
def _pools(chat: ChatFormat) -> tuple[list[int], list[int], list[int]]:
    """Printable tokens that begin with a space; of these, words; and all printable ones. No special tokens."""
    special = set(chat.tokenizer.all_special_ids) | set(getattr(chat.tokenizer, "added_tokens_decoder", {}))
    starts, words, others = [], [], []
    for token in sorted(chat.tokenizer.get_vocab().values()):
        if token in special:
            continue
        text = _decode(chat, [token])
        if not text.isprintable() or not text.isascii():
            continue
        others.append(token)
        if text.startswith(" "):
            starts.append(token)
            if text[1:].isalpha():
                words.append(token)
    if not starts:
        raise PromptError("the tokenizer has no token that begins with a space, so no random suffix can be drawn")
    return starts, words, others
