"""Replies that are no text, read without torch."""

from __future__ import annotations

import re

_RUN = re.compile(r"(.{1,40}?)\1{3,}", re.DOTALL)  # a unit that stands four times or more in a row
MIN_RUN, MIN_WORDS = 8, 8  # characters of a run and words of a reply from which they count


def is_degenerate(text: str) -> bool:
    """Judge whether a reply is no text: it is empty, or little but repetition.

    Empty is what has no letter and no digit. Repetition is a unit of up to 40 characters that stands four times or more
    in a row and fills at least half of the reply (8 characters or more), or a reply of 8 words or more of whose word
    trigrams fewer than half are distinct. Fluent nonsense is not found.

    Example:
        >>> rl.refusal.is_degenerate("I I I I I I"), rl.refusal.is_degenerate("I'm sorry, I can't help with that.")
        (True, False)
    """
    if not any(character.isalnum() for character in text):
        return True
    flat = " ".join(text.split()) + " "  # so that the last word of a run has its space too
    longest = max((len(run.group()) for run in _RUN.finditer(flat)), default=0)
    if longest >= max(MIN_RUN, len(flat) / 2):
        return True
    words = text.lower().split()
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return len(words) >= MIN_WORDS and 2 * len(set(trigrams)) < len(trigrams)
