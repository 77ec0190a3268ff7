"""Replies that are no text, read without torch."""

from __future__ import annotations

PIECE, END, DISTINCT = 8, 200, 0.75


def is_degenerate(text: str) -> bool:
    """Judge whether a reply is no text: it is empty, or ends in repetition.

    Empty is what has no letter and no digit. Repetition: of all pieces of 8 characters in its last 200 characters
    (spaces and case aside), fewer than three quarters are distinct. Short loops need some 24 tokens to show; fluent
    nonsense is not found.

    Example:
        >>> rl.refusal.is_degenerate("I I I I I I"), rl.refusal.is_degenerate("I'm sorry, I can't help with that.")
        (True, False)
    """
    if not any(character.isalnum() for character in text):
        return True
    flat = " ".join(text.lower().split())[-END:]
    pieces = [flat[i : i + PIECE] for i in range(len(flat) - PIECE + 1)]
    return len(set(pieces)) < DISTINCT * len(pieces)
