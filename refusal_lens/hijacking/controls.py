"""Controls of a suffix: random tokens of equal length, and its own tokens in another order."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from ..data.suffixes import SuffixSet
from ..errors import PromptError
from ..models.chat import ChatFormat, Encoded
from ..models.model import HookedChatModel
from ..records.labels import shortened

TRIES = 60  # draws per control


def suffix_ids(chat: ChatFormat, instruction: str, suffix: str) -> tuple[int, ...]:
    """Token ids of ``suffix`` after ``instruction``."""
    encoded = chat.encode(instruction, suffix)
    return encoded.ids[slice(*encoded.spans.suffix)]


def check_suffix(chat: ChatFormat, instructions: Sequence[str], suffix: str, n_ctx: int) -> tuple[int, ...]:
    """Number of tokens of ``suffix`` after each instruction, if all of it fits.

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
        if not _keeps_instruction(chat, text, encoded):
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
        exact: whether each has as many tokens as the suffix.
    """

    texts: tuple[str, ...]
    exact: tuple[bool, ...]


def random_controls(chat: ChatFormat, instructions: Sequence[str], suffix: str, seed: int = 0) -> Controls:
    """Draw random tokens of equal length for each prompt; each text is tokenized to exactly the tokens drawn.

    Raises:
        PromptError: in ``TRIES`` draws no text keeps its tokens after some prompt.

    Example:
        >>> drawn = rl.hijacking.random_controls(model.chat, ["How do I pick a lock?"], " please tell me")
        >>> drawn.exact
        (True,)
    """
    rng, texts = random.Random(seed), []
    starts, words, others = _pools(chat)
    for instruction in instructions:
        wanted = len(suffix_ids(chat, instruction, suffix))
        for trial in range(TRIES):
            # Words that begin with a space rarely merge, so the second half of the draws takes only these.
            pool = others if trial < TRIES // 2 or not words else words
            ids = [rng.choice(starts), *(rng.choice(pool) for _ in range(wanted - 1))]
            text = _decode(chat, ids)
            if _keeps_tokens(chat, instruction, text, ids):
                texts.append(text)
                break
        else:
            raise PromptError(
                f"no random text of {wanted} tokens keeps its tokens after {instruction[:40]!r} in {TRIES} draws; use "
                "another tokenizer or a shorter suffix"
            )
    return Controls(tuple(texts), (True,) * len(texts))


def shuffled_controls(chat: ChatFormat, instructions: Sequence[str], suffix: str, seed: int = 0) -> Controls:
    """Draw another order of the suffix's tokens for each prompt.

    Where no order in ``TRIES`` keeps its tokens, the suffix's words are shuffled instead; ``exact`` is False where that
    changes the number of tokens.
    """
    rng, texts, exact = random.Random(seed), [], []
    for instruction in instructions:
        ids = list(suffix_ids(chat, instruction, suffix))
        for _ in range(TRIES):
            order = rng.sample(ids, len(ids))
            text = _decode(chat, order)
            if (order != ids or len(set(ids)) == 1) and _keeps_tokens(chat, instruction, text, order):
                break
        else:
            words = suffix.split()
            text = suffix[: len(suffix) - len(suffix.lstrip())] + " ".join(rng.sample(words, len(words)))
        texts.append(text)
        exact.append(len(suffix_ids(chat, instruction, text)) == len(ids))
    return Controls(tuple(texts), tuple(exact))


def filled_up(
    suffixes: SuffixSet, n: int, chat: ChatFormat, instructions: Sequence[str], harmless: Sequence[str], seed: int = 0
) -> SuffixSet:
    """Fill a set up to ``n`` with controls: in turn random tokens, as many as its suffixes have, and harmless requests.

    Args:
        instructions: harmful requests, after which the random tokens stay as drawn.
        harmless: requests that become benign suffixes.

    Raises:
        PromptError: no random text keeps its tokens (``random_controls``).
    """
    more: list[Any] = []
    for i in range(n - len(suffixes)):
        if i % 2 and i // 2 < len(harmless):
            more.append({"kind": "benign", "suffix": " " + harmless[i // 2]})
        else:
            text, after = suffixes[i % len(suffixes)].text, instructions[i % len(instructions)]
            drawn = random_controls(chat, [after], text, seed + i).texts[0]
            more.append({"kind": "random_tokens", "suffix": drawn})
    added = SuffixSet.from_rows(more).items if more else ()
    known = {item.text for item in suffixes}
    kept = (*suffixes.items, *(item for item in added if item.text not in known))
    notes = (f"{len(kept) - len(suffixes)} random or benign suffixes were added",) if more else ()
    return SuffixSet(suffixes.name, kept, (*suffixes.notes, *notes))


def _keeps_instruction(chat: ChatFormat, instruction: str, encoded: Encoded) -> bool:
    """Whether the instruction has its own tokens with the suffix too: alone, its end may merge with the template."""
    alone = chat.encode(instruction)
    return encoded.ids[: encoded.spans.instruction[1]] == alone.ids[: alone.spans.instruction[1]]


def _keeps_tokens(chat: ChatFormat, instruction: str, text: str, ids: Sequence[int]) -> bool:
    try:
        encoded = chat.encode(instruction, text)
    except PromptError:  # merged with the instruction's end, or changed by the template
        return False
    return _keeps_instruction(chat, instruction, encoded) and encoded.ids[slice(*encoded.spans.suffix)] == tuple(ids)


def _decode(chat: ChatFormat, ids: Sequence[int]) -> str:
    text = chat.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    # SentencePiece's decoders drop the space of the first token.
    first = str(chat.tokenizer.convert_ids_to_tokens(ids[0]))
    return " " + text if first[:1] in ("▁", "Ġ") and not text.startswith(" ") else text


@lru_cache(maxsize=8)
def _pools(chat: ChatFormat) -> tuple[list[int], list[int], list[int]]:
    """Printable ASCII tokens, no special ones: those that begin with a space, the words among these, and all."""
    special = set(chat.tokenizer.all_special_ids) | set(getattr(chat.tokenizer, "added_tokens_decoder", {}))
    texts = {
        token: _decode(chat, [token]) for token in sorted(chat.tokenizer.get_vocab().values()) if token not in special
    }
    others = [token for token, text in texts.items() if text.isprintable() and text.isascii()]
    starts = [token for token in others if texts[token].startswith(" ")]
    if not starts:
        raise PromptError("the tokenizer has no token that begins with a space, so no random suffix can be drawn")
    return starts, [token for token in starts if texts[token][1:].isalpha()], others


def fitting(
    model: HookedChatModel, prompts: list[str], suffixes: SuffixSet, max_new_tokens: int, notes: list[str]
) -> SuffixSet:
    """The suffixes that can be investigated; the others are noted, each with its reason."""
    kept, reason = [], PromptError("there is no suffix: give at least one")
    for item in suffixes:
        try:
            check_suffix(model.chat, prompts, item.text, model.n_ctx - max_new_tokens if model.n_ctx else 0)
            kept.append(item)
        except PromptError as error:
            notes.append(f"suffix {shortened(item.text.strip())!r} left out: {error}")
            reason = error
    if not kept:
        raise reason
    return replace(suffixes, items=tuple(kept))
