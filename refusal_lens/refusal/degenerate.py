"""Degenerate replies, detected without torch."""

import zlib

PIECE, END, DISTINCT = 8, 200, 0.75
COMPRESSED = 0.25  # of a text's bytes; English and Chinese prose keep .3 or more of 400 characters


def is_degenerate(text: str) -> bool:
    """Judge whether a reply is degenerate: it is empty (no letter and no digit), or ends in repetition.

    Example:
        >>> rl.refusal.is_degenerate("I I I I I I"), rl.refusal.is_degenerate("I'm sorry, I can't help with that.")
        (True, False)
    """
    return not any(character.isalnum() for character in text) or is_repetitive(text)


def is_repetitive(text: str) -> bool:
    """Judge whether a text ends in repetition.

    Either fewer than three quarters of all pieces of 8 characters in its last 200 characters are distinct, or its last
    400 characters compress to less than a quarter (zlib); spaces and case do not count. Short loops need some 24
    tokens to show; fluent nonsense is not detected, and a list whose lines hardly differ counts as repetition.
    """
    flat = " ".join(text.lower().split())[-2 * END :]
    data, end = flat.encode("utf-8", "replace"), flat[-END:]
    pieces = [end[i : i + PIECE] for i in range(len(end) - PIECE + 1)]
    return len(set(pieces)) < DISTINCT * len(pieces) or len(zlib.compress(data, 9)) < COMPRESSED * len(data)
