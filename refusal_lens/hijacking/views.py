"""CircuitsVis views of attention, plain next to suffixed."""

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
    n, extra = len(suffixed.tokens), len(suffixed.tokens) - len(plain.tokens)
    pairs = enumerate(zip(plain.tokens, suffixed.tokens, strict=False))
    same = next((i for i, (a, b) in pairs if a != b), len(plain.tokens))
    kept = torch.tensor([*range(same), *range(same + extra, n)])
    values = torch.zeros(len(plain.heads), n, n, dtype=plain.values.dtype)
    values[:, kept[:, None], kept] = plain.values
    tokens = (*plain.tokens[:same], *["·"] * extra, *plain.tokens[same:])
    aligned = AttentionPatterns(values, plain.heads, tokens, plain.prompt)
    return attention_props(aligned), attention_props(suffixed)


def attention_pair_view(patterns: Sequence[AttentionPatterns], element_id: str = "attention-pair") -> View:
    """Both in one CircuitsVis view: a head, plain and suffixed, on the same tokens."""
    (component, plain), (_, suffixed) = paired_attention(patterns)
    names = [f"{label}, {what}" for what in ("plain", "suffixed") for label in patterns[0].labels]
    attention = [*plain["attention"], *suffixed["attention"]]
    props = {"tokens": suffixed["tokens"], "attention": attention, "attentionHeadNames": names}
    return View(component, props, element_id)
