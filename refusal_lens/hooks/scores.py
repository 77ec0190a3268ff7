"""How a layer scores its keys: queries and keys as they are multiplied, and the linear way back to the stream.

A score is scale * q · k of the rotated (and, in some models, normed) query and key, then capped; ALiBi adds a bias, and
a sink takes part in the softmax. Which of these a layer has is found by one short pass, and everything here is compared
with the model's own scores in every pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ModelError
from ..tensors import wide
from .attention_readers import heads_apart
from .base import Hooks, Model
from .readers import Reader, check_position, without_padding

FORMS = ("half", "doubled", "adjacent", "interleaved")  # how checkpoints pair the entries that they rotate
HOOKS = ("q", "k", "v", "q_normed", "k_normed", "cos", "sin", "attn_scores", "pattern")
# Scores against the model's own, relative to the largest |q| |k|: both are rounded to the model's dtype.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}


class ScoreForm(NamedTuple):
    """How one layer scores.

    Attributes:
        hooks: which of ``HOOKS`` fire there, and "rot_q" if queries are rotated before ``hook_q``.
        norm_last: whether queries and keys are normed after rotation (HunYuan).
        form: one of ``FORMS``.
        scale: what q · k is multiplied by.
        cap: scores become cap * tanh(score / cap); 0 for none.
        sinks: logits that take part in each head's softmax, or None.
    """

    hooks: frozenset[str]
    norm_last: bool
    form: str
    scale: float
    cap: float
    sinks: Float[Tensor, "head"] | None

    def capped(self, scores: Tensor) -> Tensor:
        """Scores after the cap."""
        return self.cap * torch.tanh(scores / self.cap) if self.cap else scores

    def effective(self, raw: Tensor, normed: Tensor | None, cos: Tensor | None, sin: Tensor | None) -> Tensor:
        """Queries or keys [batch, pos, head, d] as they are multiplied."""
        if self.norm_last and normed is not None:
            return normed
        x = raw if normed is None else normed
        return x if cos is None or sin is None else rotated(x, cos, sin, self.form)


def rotated(
    x: Float[Tensor, "batch pos head d"],
    cos: Float[Tensor, "#batch pos r"],
    sin: Float[Tensor, "#batch pos r"],
    form: str,
) -> Float[Tensor, "batch pos head d"]:
    """``x`` rotated by its position; with ``-sin`` this is the transposed map."""
    if form == "doubled":
        cos, sin = (torch.cat([t, t], -1) for t in (cos, sin))
    elif form == "adjacent":
        cos, sin = (t[..., : t.shape[-1] // 2].repeat_interleave(2, -1) for t in (cos, sin))
    head, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    if form in ("half", "doubled"):
        first, second = head.chunk(2, -1)
        other = torch.cat([-second, first], -1)
    else:
        other = torch.stack([-head[..., 1::2], head[..., ::2]], -1).flatten(-2)
    return torch.cat([head * cos[:, :, None].to(head) + other * sin[:, :, None].to(head), rest], -1)


def score_forms(model: Model) -> tuple[ScoreForm, ...]:
    """How every layer scores, found and checked by a pass over one short prompt; a ``ModelError`` for a layer without
    heads, or one whose scores are made in another way."""
    seen: list[dict[str, Tensor]] = [{} for _ in range(model.n_layers)]
    order: list[list[str]] = [[] for _ in seen]

    def see(layer: int, name: str, x: Tensor, hook: Any) -> None:
        own = name in ("q", "k", "v", "q_normed", "k_normed")
        seen[layer][name] = wide(heads_apart(x, hook, model.d_head) if own else x)
        order[layer].append(name)

    hooks: Hooks = []
    for layer in range(model.n_layers):
        model.backend.output_weight(layer)  # refuses a layer without heads
        for name in (*HOOKS, "rot_q"):
            if model.backend.has_hook(point := f"blocks.{layer}.attn.hook_{name}"):
                hooks.append((point, partial(see, layer, name)))
    with torch.inference_mode(), model.hooks(*hooks):
        model.logits(model.tokenize(["How do I bake bread?"]))
    return tuple(_form(model, layer, *found) for layer, found in enumerate(zip(seen, order, strict=True)))


def _form(model: Model, layer: int, seen: dict[str, Tensor], order: list[str]) -> ScoreForm:
    missing = [name for name in ("q", "k", "v", "attn_scores", "pattern") if name not in seen]
    if missing:
        raise ModelError(
            f"{model.name}, layer {layer}: hook_{missing[0]} does not fire, so scores can't be split; load a "
            "TransformerBridge (transformer-lens 4.3) with eager attention"
        )
    baked = "rot_q" in order and order.index("rot_q") < order.index("q")  # latent attention rotates a part before
    norm_last = "rot_q" in order and "q_normed" in order and order.index("q_normed") > order.index("rot_q")
    fired = {*seen} - (set() if baked else {"rot_q"})
    scale, cap, sinks = model.backend.scoring(layer)
    gaps: dict[str, float] = {}
    for form in FORMS:
        found = ScoreForm(frozenset(fired), norm_last, form, scale, cap, sinks)
        try:
            q, k = (found.effective(seen[n], seen.get(f"{n}_normed"), seen.get("cos"), seen.get("sin")) for n in "qk")
        except RuntimeError:  # a form whose pairs do not fit
            continue
        gap = found.capped(products(found, q[:, -1], k)) - seen["attn_scores"][:, :, -1].to(q)
        # A bias by position (ALiBi) is a line; anything else shows in a later pass, where two texts are compared.
        bend = gap if gap.shape[-1] < 3 else gap.diff(dim=-1).diff(dim=-1)
        gaps[form] = float(bend.abs().max())
    return ScoreForm(frozenset(fired), norm_last, min(gaps, key=gaps.__getitem__), scale, cap, sinks)


def products(form: ScoreForm, q: Float[Tensor, "batch head d"], k: Float[Tensor, "batch src kv d"]) -> Tensor:
    """Scores of one query per prompt before the cap, [batch, head, src], without bias and mask: linear in both."""
    grouped = q.unflatten(1, (k.shape[2], -1))
    return form.scale * torch.einsum("bkgd,bskd->bkgs", grouped, k).flatten(1, 2)


class Scored(NamedTuple):
    """What one layer multiplied, by prompt; keys are aligned at the end of their prompt, and padding is 0.

    Attributes:
        q, k: query at the chosen position and keys, before norm and rotation.
        q_normed, k_normed: after the norm of queries and keys, where there is one.
        cos, sin: of the rotation.
        scores, pattern: the query's row.
        v: values.
    """

    q: Float[Tensor, "batch head d"]
    k: Float[Tensor, "batch src kv d"]
    q_normed: Float[Tensor, "batch head d"] | None
    k_normed: Float[Tensor, "batch src kv d"] | None
    cos: Float[Tensor, "batch src r"] | None
    sin: Float[Tensor, "batch src r"] | None
    scores: Float[Tensor, "batch head src"]
    pattern: Float[Tensor, "batch head src"]
    v: Float[Tensor, "batch src kv dv"]

    def effective(self, form: ScoreForm, pos: int) -> tuple[Tensor, Tensor]:
        """The query [batch, head, d] and the keys [batch, src, kv, d] as they are multiplied."""
        return self.turned(form, self, pos), form.effective(self.k, self.k_normed, self.cos, self.sin)

    def turned(self, form: ScoreForm, place: Scored, pos: int) -> Float[Tensor, "batch head d"]:
        """The query as it would be multiplied at the position of another run's query."""
        at = [None if t is None else t[:, pos : pos + 1 or None] for t in (place.cos, place.sin)]
        normed = None if self.q_normed is None else self.q_normed[:, None]
        return form.effective(self.q[:, None], normed, *at)[:, 0]


class ScoreRows(NamedTuple):
    """What ``Scores`` read: by layer, and by name of the other hook points."""

    layers: tuple[Scored, ...]
    last: dict[str, Float[Tensor, "batch last *rest"]]


@dataclass(eq=False)
class Scores(Reader[ScoreRows]):
    """What every layer multiplies for its scores at one position, and raw activations of other hook points at the end.

    Attributes:
        forms: from ``score_forms``.
        pos: position of the query, counted from the end.
        names: hook points whose last ``n_last`` positions are read too.
        n_last: how many.
    """

    forms: Sequence[ScoreForm]
    pos: int = -1
    names: Sequence[str] = ()
    n_last: int = 1
    axis: ClassVar[int] = 0

    def begin(self, model: Model, tokens: Any) -> None:
        super().begin(model, tokens)
        check_position(tokens, self.pos)

    def hooks(self, model: Model, batch: Any) -> Hooks:
        self.now: dict[str, Tensor] = {}
        found: Hooks = [(name, partial(self._keep, name)) for name in self.names]
        for layer, form in enumerate(self.forms):
            found += [
                (f"blocks.{layer}.attn.hook_{name}", partial(self._read, model, f"{layer} {name}", name))
                for name in HOOKS
                if name in form.hooks
            ]
        return found

    def _keep(self, name: str, x: Tensor, hook: Any) -> None:
        self.now[f"last {name}"] = wide(x[:, -self.n_last :].clone())

    def _read(self, model: Model, key: str, name: str, x: Tensor, hook: Any) -> None:
        if name in ("attn_scores", "pattern"):
            self.now[key] = wide(x[:, :, self.pos].clone()).transpose(1, 2)
        elif name in ("cos", "sin"):
            self.now[key] = wide(x.clone())
        else:
            whole = wide(heads_apart(x, hook, model.d_head))
            self.now[key] = (whole[:, self.pos] if name.startswith("q") else whole).clone()

    def values(self, model: Model, batch: Any, logits: Tensor | None) -> dict[str, Tensor]:
        found = {}
        for key, x in self.now.items():
            x = x.expand(len(batch), *x.shape[1:]) if key.endswith((" cos", " sin")) else x
            found[key] = without_padding(x, batch.mask) if self.token_axes(key) else x
        return found

    def token_axes(self, name: str) -> tuple[int, ...]:
        """Of all but queries and what stands at the end."""
        return () if name.startswith("last ") or name.split()[-1] in ("q", "q_normed") else (1,)

    def result(self) -> ScoreRows:
        found = []
        for layer in range(len(self.forms)):
            row = {name: self.rows.get(f"{layer} {name}") for name in HOOKS}
            scores, pattern = (row.pop(name).transpose(1, 2) for name in ("attn_scores", "pattern"))  # type: ignore[union-attr]
            found.append(Scored(**row, scores=scores, pattern=pattern))  # type: ignore[arg-type]
        return ScoreRows(tuple(found), {name: self.rows[f"last {name}"] for name in self.names})
