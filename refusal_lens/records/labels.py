"""TODO."""

from __future__ import annotations

REGIONS = ("bos", "template_pre", "instruction", "suffix", "template_post")


def visible(text: str) -> str:
    """Whitespace made visible, for labels."""
    return text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")


Head = tuple[int, int]


def head_label(layer: int, head: int) -> str:
    """``L12H7``, TransformerLens's way of naming a head."""
    return f"L{layer}H{head}"
