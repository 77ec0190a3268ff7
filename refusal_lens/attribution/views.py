"""Large attention maps, made small enough to draw and to read."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..records.labels import Head, visible
from ..report.views import View, coloured_tokens
from .token_records import AttentionPatterns, SourceContributions

MAX_TOKENS = 96  # a map of 96 x 96 is 9216 cells: readable, and quick to draw


def thinned(
    values: Float[Tensor, "*heads dest src"], tokens: tuple[str, ...], limit: int = MAX_TOKENS
) -> tuple[Float[Tensor, "*heads rows columns"], tuple[str, ...], str]:
    """The map with neighbouring tokens grouped, their labels, and a notice ("" if nothing was grouped).

    Attention is summed over the source tokens of a group and averaged over its destination tokens, so that each row
    still adds up to 1.
    """
    n = len(tokens)
    if n <= limit:
        return values, tokens, ""
    step = -(-n // limit)
    groups = [slice(start, min(start + step, n)) for start in range(0, n, step)]
    rows = torch.stack([values[..., group, :].mean(-2) for group in groups], -2)
    small = torch.stack([rows[..., group].sum(-1) for group in groups], -1)
    labels = tuple(tokens[g.start] + ("…" if g.stop - g.start > 1 else "") for g in groups)
    return small, labels, f"{n} tokens, in groups of {step} neighbours (sum over sources, mean over destinations)"


def attention_props(record: AttentionPatterns) -> tuple[str, dict[str, Any]]:
    """CircuitsVis's component and its properties: attention of a few heads on one prompt (rounded to 4 digits; beyond
    ``MAX_TOKENS``, neighbours are grouped, which ``attention_notice`` says)."""
    values, tokens, _ = thinned(record.values.float(), record.tokens)
    rounded = (values * 1e4).round() / 1e4
    return "AttentionHeads", {
        "tokens": [visible(token) for token in tokens],
        "attention": [[[float(f"{x:.4g}") for x in row] for row in head] for head in rounded.tolist()],
        "attentionHeadNames": list(record.labels),
    }


def attention_notice(record: AttentionPatterns) -> str:
    """How tokens were grouped in the view, for its caption; "" if they were not."""
    return thinned(record.values[:1], record.tokens)[2]


def attention_view(record: AttentionPatterns, element_id: str = "attention") -> View:
    """CircuitsVis's attention heads of a few heads on one prompt."""
    return View(*attention_props(record), element_id)


def tokens_view(
    record: SourceContributions, prompt: int = 0, heads: Sequence[Head] | None = None, element_id: str = "tokens"
) -> View:
    """CircuitsVis's coloured tokens: what each source token of a prompt writes along r̂."""
    return View(*tokens_props(record, prompt, heads), element_id)


def tokens_props(
    record: SourceContributions, prompt: int = 0, heads: Sequence[Head] | None = None
) -> tuple[str, dict[str, Any]]:
    """CircuitsVis's component and its properties for ``tokens_view``."""
    values = record.of_prompt(prompt, list(heads) if heads is not None else None)
    return coloured_tokens(record.tokens[prompt], values.float().tolist())
