"""Direct logit attribution through the frozen final norm, exact in any basis and without weight processing.

TransformerLens's own ``direct_logit_attribution`` needs compatibility mode (without it, it leaves out the final norm's
weight), which moves the model into another basis; here the weight is part of the readout instead.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.prompts import PromptsLike, as_prompts
from ..engines.base import Engine
from ..errors import ModelError, PromptError
from ..hooks.attention_readers import PARTS_TOLERANCE, Components, Parts
from ..hooks.base import Model
from ..hooks.readout import through_norm
from ..models.model import HookedChatModel
from ..refusal.records import RefusalTokens
from ..refusal.tokens import TokensLike, as_refusal_tokens, given_refusal_tokens
from ..tensors import wide
from .components import texts
from .records import ComponentContributions, DirectLogitAttribution


def compliance_tokens(
    model: HookedChatModel, harmless: PromptsLike, refusal_tokens: RefusalTokens, top: int = 4
) -> RefusalTokens:
    """The tokens with which the model most often begins its answers, without refusal tokens: for ``against``.

    Raises:
        ModelError: every answer begins with a refusal token.
    """
    harmless = as_prompts(harmless)
    first = Counter(model.last_logits(harmless).argmax(-1).tolist())
    chosen = [token for token, _ in first.most_common() if token not in refusal_tokens.ids][:top]
    if not chosen:
        raise ModelError(f"{model.name} begins every answer with a refusal token: give compliance tokens yourself")
    named = given_refusal_tokens(model, chosen)
    shares = tuple(first[token] / len(harmless) for token in chosen)
    return RefusalTokens(named.ids, named.texts, shares, f"first tokens of {len(harmless)} answers")


def direct_logit_attribution(
    model: HookedChatModel,
    prompts: PromptsLike,
    answer: TokensLike,
    against: TokensLike | None = None,
    *,
    suffixes: Sequence[str] | None = None,
    check: bool = True,
    engine: Engine | None = None,
) -> DirectLogitAttribution:
    """What every component adds to the mean logit of ``answer`` minus that of ``against``, at the last position.

    Args:
        answer: refusal tokens: a ``RefusalTokens``, ids, or strings of one token each.
        against: compliance tokens (see ``compliance_tokens``); None attributes the answer's logit alone.
        suffixes: one per prompt (with its leading space), or None.
        check: verify that heads sum to attention and that the readout gives the model's own logits.
        engine: as in ``attribution.heads``.

    Raises:
        PromptError: a string that is not one token, or a token in both groups.
        ModelError: the model's logits are not this readout of its final norm (e.g. a scaled unembedding).

    Example:
        >>> logits = rl.attribution.direct_logit_attribution(model, data.harmful.test[:4], found.refusal_tokens)
        >>> logits.to_frame().label[0], logits.error < 1e-3
        ('L0 mlp', True)
    """
    prompts, wanted = as_prompts(prompts), as_refusal_tokens(model, answer)
    other = RefusalTokens((), ()) if against is None else as_refusal_tokens(model, against)
    if both := set(wanted.ids) & set(other.ids):
        raise PromptError(f"the token ids {sorted(both)} are in answer and in against; leave them out of one")
    reader = _LogitParts(model, wanted, other, check)
    (found,) = model.run(prompts, suffixes, read=reader, engine=engine)
    fixed = torch.ones_like(found["measured"])
    parts: dict[str, Any] = {name: found[name] for name in Parts._fields}
    return DirectLogitAttribution(
        ComponentContributions(**parts, prompts=texts(prompts, suffixes)),
        norm_bias=fixed * reader.norm_bias,
        unembed_bias=fixed * float(reader.offsets @ reader.weights),
        before_cap=found["before_cap"],
        measured=found["measured"],
        cap=reader.cap,
        answer=wanted.texts,
        against=other.texts,
    )


class _LogitParts(Components):
    """Components along the readout of a logit difference, divided by the final norm's scale, and the logits."""

    needs_logits: ClassVar[bool] = True

    def __init__(self, model: HookedChatModel, answer: RefusalTokens, against: RefusalTokens, check: bool):
        dtype = torch.promote_types(model.dtype, torch.float32)
        backend, norm = model.backend, model.backend.final_norm()
        self.ids = torch.tensor([*answer.ids, *against.ids], device=model.device)
        shares = [sign / len(group.ids) for sign, group in ((1, answer), (-1, against)) for _ in group.ids]
        self.weights = torch.tensor(shares, dtype=dtype, device=model.device)
        scale = backend.logit_scale
        self.columns = scale * backend.unembed_weight().detach()[:, self.ids].to(dtype)
        b_u = backend.unembed_bias()
        self.offsets = torch.zeros_like(self.weights) if b_u is None else scale * b_u[self.ids].to(dtype)
        difference = self.columns @ self.weights
        super().__init__(through_norm(difference, norm), -1, check)
        self.norm_bias = 0.0 if norm.bias is None else float(norm.bias.to(dtype) @ difference)
        self.cap = backend.logit_cap()
        self.scale_site, self.out_site = f"{norm.site}.hook_scale", f"{norm.site}.hook_out"
        self.has_out = backend.has_hook(self.out_site)

    def begin(self, model: Model, tokens: Any) -> None:
        super().begin(model, tokens)
        self.names = [*self.names, self.scale_site, *([self.out_site] if self.has_out else [])]

    def values(self, model: Model, batch: Any, logits: Tensor | None) -> dict[str, Tensor]:
        assert logits is not None
        cap = self.cap
        scale = wide(self.kept[self.scale_site][:, 0, 0]).to(self.columns)
        rows = {name: x / scale for name, x in super().values(model, batch, None).items()}
        measured = logits[:, self.ids].to(self.columns)
        if self.has_out:
            before = wide(self.kept[self.out_site][:, 0]).to(self.columns) @ self.columns + self.offsets
        else:
            before = cap * torch.atanh(measured / cap) if cap else measured
        if self.check:
            _check_readout(model, cap * torch.tanh(before / cap) if cap else before, measured)
        return rows | {"before_cap": before @ self.weights, "measured": measured @ self.weights}

    def result(self) -> Any:
        return self.rows


def _check_readout(model: Model, ours: Float[Tensor, "b n"], theirs: Float[Tensor, "b n"]) -> None:
    gap = float(((ours - theirs).abs() / theirs.abs().clamp_min(1)).max())
    tolerance = PARTS_TOLERANCE.get(model.dtype, 4e-2)
    if not gap <= tolerance:
        raise ModelError(
            f"{model.name}: unembedding its final norm does not give the model's own logits (relative gap "
            f"{gap:.2g}, limit {tolerance:g}): its logits are scaled or shifted in an unknown way; use "
            "component_contributions, which reads the residual stream"
        )
