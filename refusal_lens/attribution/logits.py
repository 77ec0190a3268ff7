"""Direct logit attribution through the frozen final norm, exact in any basis and without weight processing.

TransformerLens's own ``direct_logit_attribution`` needs compatibility mode (it leaves the final norm's weight out
otherwise), which moves the model into another basis; here the weight is part of the readout instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ModelError, PromptError
from ..hooks.readout import Readout, through_norm
from ..models.model import HookedChatModel
from ..refusal.records import RefusalTokens
from ..refusal.tokens import given_refusal_tokens
from ..tensors import wide
from .components import PARTS_TOLERANCE, Collected, decompose, texts
from .records import ComponentContributions, DirectLogitAttribution

TokensLike = RefusalTokens | Sequence[int | str]


def compliance_tokens(
    model: HookedChatModel, harmless: Sequence[str], refusal_tokens: RefusalTokens, top: int = 4
) -> RefusalTokens:
    """The tokens with which the model most often begins its answers, refusal tokens left out: what to set against.

    Raises:
        ModelError: every answer begins with a refusal token.
    """
    first = Counter(model.last_logits(list(harmless)).argmax(-1).tolist())
    chosen = [token for token, _ in first.most_common() if token not in refusal_tokens.ids][:top]
    if not chosen:
        raise ModelError(f"{model.name} begins every answer with a refusal token: name tokens of compliance yourself")
    named = given_refusal_tokens(model, chosen)
    shares = tuple(first[token] / len(harmless) for token in chosen)
    return RefusalTokens(named.ids, named.texts, shares, f"first tokens of {len(harmless)} answers")


def direct_logit_attribution(
    model: HookedChatModel,
    prompts: Sequence[str],
    answer: TokensLike,
    against: TokensLike | None = None,
    *,
    suffixes: Sequence[str] | None = None,
    check: bool = True,
) -> DirectLogitAttribution:
    """What every component adds to the mean logit of ``answer`` minus that of ``against``, at the last position.

    Args:
        model: the model.
        prompts: requests.
        answer: refusal tokens: a ``RefusalTokens``, ids, or strings of one token each.
        against: compliance tokens (see ``compliance_tokens``); None attributes the answer's logit alone.
        suffixes: one per prompt (with its leading space), or None.
        check: verify that heads sum to attention and that the readout gives the model's own logits.

    Raises:
        PromptError: a string that is not one token, or a token in both groups.
        ModelError: the model's logits are not this readout of its final norm (e.g. a scaled unembedding).
    """
    wanted, other = _tokens(model, answer), None if against is None else _tokens(model, against)
    if other is not None and (both := set(wanted.ids) & set(other.ids)):
        raise PromptError(f"the token ids {sorted(both)} are in answer and in against; leave them out of one")
    dtype = torch.promote_types(model.dtype, torch.float32)
    backend, norm = model.backend, model.backend.final_norm()
    ids = torch.tensor([*wanted.ids, *(other.ids if other else ())], device=model.device)
    shares = [1 / len(wanted.ids) for _ in wanted.ids]
    shares += [] if other is None else [-1 / len(other.ids) for _ in other.ids]
    weights = torch.tensor(shares, dtype=dtype, device=model.device)
    columns = backend.unembed_weight().detach()[:, ids].to(dtype)
    b_u = backend.unembed_bias()
    offsets = torch.zeros(len(ids), dtype=dtype, device=model.device) if b_u is None else b_u[ids].to(dtype)
    difference = columns @ weights
    readout = Readout.of(model, through_norm(difference, norm))
    norm_bias = 0.0 if norm.bias is None else float(norm.bias.to(dtype) @ difference)
    cap = backend.logit_cap()

    tokens = model.tokenize(prompts, suffixes)
    rows, ends = Collected(model, len(tokens)), Collected(model, len(tokens))
    scale_site, out_site = f"{norm.site}.hook_scale", f"{norm.site}.hook_out"
    has_out = backend.has_hook(out_site)
    for batch in model.batches(tokens):
        extra = [scale_site, *([out_site] if has_out else [])]
        found, cached = decompose(model, batch, readout, -1, check, extra)
        scale = wide(cached[scale_site][:, 0, 0]).to(dtype)
        rows.put(batch, {name: x / scale for name, x in found.items()})
        logits = model.logits(batch)[:, -1][:, ids].to(dtype)
        if has_out:
            before = wide(cached[out_site][:, 0]).to(dtype) @ columns + offsets
        else:
            before = cap * torch.atanh(logits / cap) if cap else logits
        if check:
            _check_readout(model, cap * torch.tanh(before / cap) if cap else before, logits)
        ends.put(batch, {"before_cap": before @ weights, "measured": logits @ weights})
    n = len(tokens)
    parts: dict[str, Any] = dict(rows.rows)
    return DirectLogitAttribution(
        ComponentContributions(**parts, prompts=texts(prompts, suffixes)),
        norm_bias=torch.full((n,), norm_bias, dtype=rows.dtype),
        unembed_bias=torch.full((n,), float(offsets @ weights), dtype=rows.dtype),
        **ends.rows,
        cap=cap,
        answer=wanted.texts,
        against=() if other is None else other.texts,
    )


def _tokens(model: HookedChatModel, tokens: TokensLike) -> RefusalTokens:
    return tokens if isinstance(tokens, RefusalTokens) else given_refusal_tokens(model, tokens)


def _check_readout(model: HookedChatModel, ours: Float[Tensor, "b n"], theirs: Float[Tensor, "b n"]) -> None:
    gap = float(((ours - theirs).abs() / theirs.abs().clamp_min(1)).max())
    tolerance = PARTS_TOLERANCE.get(model.dtype, 4e-2)
    if not gap <= tolerance:
        raise ModelError(
            f"{model.name}: unembedding its final norm gives other logits than the model's own (relative gap "
            f"{gap:.2g}, limit {tolerance:g}): its logits are scaled or shifted in a way not known here; use "
            "component_contributions, which reads the residual stream"
        )
