"""CircuitsVis views of attention, plain beside suffixed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..attribution.token_records import AttentionPatterns
from ..attribution.views import attention_props
from ..report.views import View


def paired_attention(patterns: Sequence[AttentionPatterns]) -> tuple[tuple[str, dict[str, Any]], ...]:
    """CircuitsVis' component and properties for one head, plain and suffixed, tokens aligned: the plain prompt gets an
    empty column for each suffix token, so that both views have the same axis."""
    plain, suffixed = patterns
    extra = len(suffixed.tokens) - len(plain.tokens)
    same = next(
        (i for i, (a, b) in enumerate(zip(plain.tokens, suffixed.tokens, strict=False)) if a != b), len(plain.tokens)
    )
    gap = slice(same, same + extra)
    n = len(suffixed.tokens)
    kept = torch.ones(n, dtype=torch.bool)
    kept[gap] = False
    values = torch.zeros(len(plain.heads), n, n, dtype=plain.values.dtype)
    index = kept.nonzero()[:, 0]
    values[:, index[:, None], index[None]] = plain.values
    tokens = tuple("·" if not k else t for k, t in zip(kept.tolist(), _spread(plain.tokens, same, extra), strict=True))
    aligned = AttentionPatterns(values, plain.heads, tokens, plain.prompt)
    return attention_props(aligned), attention_props(suffixed)


def attention_pair_view(patterns: Sequence[AttentionPatterns], element_id: str = "attention-pair") -> View:
    """Both in one CircuitsVis view: a head, plain and suffixed, on the same tokens."""
    (component, plain), (_, suffixed) = paired_attention(patterns)
    names = [f"{label}, {what}" for what in ("plain", "suffixed") for label in patterns[0].labels]
    attention = [*plain["attention"], *suffixed["attention"]]
    props = {"tokens": suffixed["tokens"], "attention": attention, "attentionHeadNames": names}
    return View(component, props, element_id)


def _spread(tokens: Sequence[str], at: int, extra: int) -> list[str]:
    return [*tokens[:at], *["·"] * extra, *tokens[at:]]
