"""Names of heads, regions, conditions and tokens (read without torch, for the command line's help)."""

import re
from collections.abc import Sequence
from typing import Any

from ..errors import LabelError

EFFECTS = ("ablation", "addition", "subtraction", "orthogonalized")
CONDITIONS = ("baseline", *EFFECTS, *(f"random_{name}" for name in EFFECTS))  # each beside a random direction
POINTS = ("calibrated", "accuracy", "equal_error", "paper")  # of the refusal metric: above it a prompt is refused
REGIONS = ("bos", "template_pre", "instruction", "suffix", "template_post")
Head = tuple[int, int]


def visible(text: str) -> str:
    """Whitespace made visible, for labels."""
    return text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")


def shortened(text: str, limit: int = 60) -> str:
    """At most ``limit`` characters, for labels."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def head_label(layer: int, head: int) -> str:
    """``L12H7``, TransformerLens's way of naming a head."""
    return f"L{layer}H{head}"


def as_head(head: Head | str) -> Head:
    """(layer, head) of ``"L12H7"`` or of a pair; a ``LabelError`` for a text that is no head's name."""
    if isinstance(head, str) and (match := re.fullmatch(r"L(\d+)H(\d+)", head)):
        return int(match[1]), int(match[2])
    if isinstance(head, str) or not isinstance(head, Sequence) or len(head) != 2:
        raise LabelError(f"{head!r} is not a head; write layer and head as in 'L12H7' or (12, 7)")
    return int(head[0]), int(head[1])


def as_heads(heads: Any) -> tuple[Head, ...]:
    """(layer, head) pairs of labels or pairs, of a single one, or of a result that has ``heads``; a ``LabelError`` for
    anything else."""
    found = getattr(heads, "heads", heads)
    single = isinstance(found, str) or (len(found) == 2 and all(isinstance(part, int) for part in found))
    return tuple(map(as_head, [found] if single else found))


def index_of(labels: Sequence[Any], label: Any, what: str, owner: str = "it") -> int:
    """Position of ``label`` in ``labels``; a ``LabelError`` that lists these where it is not among them, by the noun
    for a label ("condition") and what holds the labels."""
    if label in labels:
        return labels.index(label)
    raise LabelError(f"there is no {what} {label!r}; {owner} has {listed(labels)}")


def listed(labels: Sequence[Any], limit: int = 12) -> str:
    """Labels in a sentence: the first ``limit``, long ones cut, and how many there are."""
    if isinstance(labels, range) and len(labels) > 3:
        return f"{labels[0]} to {labels[-1]}"
    short = [shortened(str(label), 40) for label in labels[:limit]]
    return (", ".join(short) or "none") + (f", … ({len(labels)} in all)" if len(labels) > limit else "")
