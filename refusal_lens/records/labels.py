"""Names of heads, regions and conditions (read without torch, for the command line's help)."""

from __future__ import annotations

EFFECTS = ("ablation", "addition", "subtraction", "orthogonalized")
CONDITIONS = ("baseline", *EFFECTS, *(f"random_{name}" for name in EFFECTS))  # each beside a random direction
REGIONS = ("bos", "template_pre", "instruction", "suffix", "template_post")


def visible(text: str) -> str:
    """Whitespace made visible, for labels."""
    return text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")


Head = tuple[int, int]


def head_label(layer: int, head: int) -> str:
    """``L12H7``, TransformerLens's way of naming a head."""
    return f"L{layer}H{head}"
