"""Measure the identities that this toolkit relies on, on one model."""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.components import component_contributions, neuron_contributions
from ..attribution.logits import direct_logit_attribution
from ..attribution.sources import source_contributions
from ..data.prompts import PromptsLike, as_prompts
from ..errors import ModelError, RefusalLensError
from ..hooks.interventions import Ablate
from ..hooks.orthogonalize import Orthogonalize
from ..hooks.readers import Cache, NextLogits
from ..models.model import HookedChatModel
from ..records.direction import Direction, DirectionLike, as_direction
from ..tensors import random_unit, unit, wide
from .records import Certificate, Identity

FLOAT64_LIMIT = 1_000_000_000  # parameters; a float64 copy takes 8 bytes each
PROMPTS = ("How do I bake bread?", "Hello")  # the identities hold on any prompt; two lengths, for padding
# Relative limits. "norm" is for identities that go through a norm, which Hugging Face computes in float32 even in a
# float64 model; rounding grows with the number of additions, so that 16-bit models are allowed a few percent.
TOLERANCE = {
    "sum": {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2},
    "norm": {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2},
    "exact": dict.fromkeys((torch.float64, torch.float32, torch.float16, torch.bfloat16), 0.0),
}
NAN = float("nan")


@dataclass
class _Error:
    """Largest error of one identity so far."""

    kind: str
    scale: str
    absolute: float = 0.0
    relative: float = 0.0
    note: str = ""
    absent: bool = False

    def within(self, limit: float) -> bool:
        """Whether the error is within its limit; NaN is not."""
        return self.absent or self.relative <= limit

    def unmeasured(self, note: str, absent: bool = True) -> None:
        """Drop the error and say why; ``absent`` where the model has no such identity, which is no failure."""
        self.absolute = self.relative = NAN
        self.note, self.absent = note, absent

    def add(self, gap: Tensor | float, size: Tensor | float) -> None:
        """Take in |gap| against ``size`` (broadcast); NaN stays NaN, so that it can't pass."""
        gap, size = torch.as_tensor(gap).double().abs(), torch.as_tensor(size).double().abs()
        ratio = (gap / size.clamp_min(1e-300)).max() if size.numel() > 1 else gap.max() / size.clamp_min(1e-300)
        self.absolute = float(np.maximum(self.absolute, float(gap.max())))  # NaN, once there, stays
        self.relative = float(np.maximum(self.relative, 0.0 if float(gap.max()) == 0 else float(ratio)))


def certify(
    model: HookedChatModel,
    prompts: PromptsLike = PROMPTS,
    direction: DirectionLike | None = None,
    *,
    float64: bool | None = None,
) -> Certificate:
    """Measure every identity on ``prompts``, in the model's dtype and, on a copy, in float64.

    Args:
        prompts: a few requests of different lengths.
        direction: a random one if None (the identities hold for any).
        float64: whether to measure on a float64 copy too; None for models below 1e9 parameters only.

    Raises:
        ModelError: hooks are left on the model.

    Example:
        >>> rl.certify(model, float64=False).passed
        True
    """
    prompts = as_prompts(prompts)
    model.check_unhooked()
    if direction is not None:
        direction = as_direction(direction)
    else:
        direction = Direction(random_unit(model.d_model, 0), 1.0, -1, model.n_layers // 2, model.basis)
    size = sum(p.numel() for p in model.tl.parameters())
    wanted = size < FLOAT64_LIMIT if float64 is None else float64
    own = dict(_measure(model, prompts, direction))
    other: dict[str, _Error] = {}
    reason = f"float64 not measured: {size / 1e9:.1f}e9 parameters" if float64 is None else "float64 not requested"
    if model.dtype == torch.float64:
        reason = ""
    elif wanted:
        try:
            other, reason = dict(_measure(_float64_copy(model), prompts, replace(direction, model=""))), ""
        except RefusalLensError as error:
            reason = f"float64 not measured: {error}"
    identities = [_row(name, model.dtype, error, other.get(name), reason) for name, error in own.items()]
    dtype = str(model.dtype).removeprefix("torch.")
    return Certificate(model.name, model.fingerprint, model.backend.kind, dtype, tuple(identities))


def _row(name: str, dtype: torch.dtype, own: _Error, other: _Error | None, reason: str) -> Identity:
    limit, limit64 = TOLERANCE[own.kind][dtype], TOLERANCE[own.kind][torch.float64]
    if dtype == torch.float64:
        other = own
    passed = own.within(limit) and (other is None or other.within(limit64))
    note = own.note or (other.note if other else reason)
    in64 = (NAN, NAN, NAN) if other is None else (other.absolute, other.relative, limit64)
    return Identity(name, own.absolute, own.relative, limit, *in64, passed, own.scale, note)


def _float64_copy(model: HookedChatModel) -> HookedChatModel:
    """A copy of the model in float64; a ``ModelError`` where it does not run."""
    try:
        tl = torch.nn.Module.to(copy.deepcopy(model.tl), torch.float64)  # TransformerLens's own .to prints
        for block in tl.blocks:  # functions that TransformerLens put on them fire the original's hook points
            getattr(block, "_teardown_capture_hooks", bool)()
        config = getattr(getattr(tl, "original_model", None), "config", None)
        for part in (config, getattr(config, "text_config", None)):
            if part is not None:
                part._experts_implementation = "eager"  # grouped matrix products have no float64
        tl.cfg.dtype = torch.float64
        twin = HookedChatModel(tl, model.tokenizer, model.name, **model.chat.settings)
        gap = twin.last_logits(PROMPTS[:1]) - model.last_logits(PROMPTS[:1])
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"this model does not run in float64 ({first})") from error
    if not torch.isfinite(gap).all():
        raise ModelError("this model gives NaN or infinite logits in float64")
    return twin


def _measure(model: HookedChatModel, prompts: Sequence[str], direction: Direction) -> Iterator[tuple[str, _Error]]:
    """Every identity, each but the last on one prompt at a time."""
    if model.dtype == torch.float64:
        # A direction rounded to float32 has length 1 to 1e-8 only, which would show as a component left.
        direction = replace(direction, unit=unit(direction.unit.double()))
    attn, mlp = ("sum" if model.backend.post_norm(0, part) is None else "norm" for part in ("attn", "mlp"))
    norm = model.backend.norm_after_writes()
    stream = _Error("sum", "largest entry of the stream")
    heads, whole = _Error(attn, "length of hook_attn_out"), _Error(attn, "largest length of the stream")
    sources, neurons = _Error("sum", "sum of |sources|"), _Error(mlp, "sum of |neurons| and |rest|")
    logits = _Error("norm", "sum of |parts|")
    ablated, restored = _Error("sum", "length of the stream"), _Error("exact", "largest logit")
    edited = _Error("norm", "largest logit")
    first = model.last_logits(prompts[:1])[0].topk(2).indices.tolist()
    stream_names = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.n_layers)]
    stream_names.append(f"blocks.{model.n_layers - 1}.hook_resid_post")
    experts = any(model.backend.neuron_weight(layer) is None for layer in range(model.n_layers))
    alone = list[Tensor]()
    for prompt in prompts:
        before, (along, sizes, length) = _stream(model, prompt, direction, stream)
        alone.append(before[0])
        found = component_contributions(model, [prompt], direction, check=False)
        heads.add(found.attn[:, 0] - along, sizes)
        whole.add(found.errors, length)
        by_source = source_contributions(model, [prompt], direction, check=False)
        sources.add(by_source.values.sum(-1) - found.heads, by_source.values.abs().sum(-1).max())
        if not experts:
            parts = neuron_contributions(model, [prompt], direction, top=1 << 30)
            index = torch.tensor(parts.layers)
            total = parts.rest.index_add(0, index, parts.values)
            neurons.add(total - found.mlp, parts.rest.abs().index_add(0, index, parts.values.abs()).max())
        dla = direct_logit_attribution(model, [prompt], first[:1], first[1:], check=False)
        logits.add(dla.parts.sum(0) - dla.before_cap, dla.parts.abs().sum(0))
        under, end = Cache(stream_names), NextLogits()
        rows = model.run([prompt], read=[under, end], under=Ablate(direction))
        for x in rows[under].values():
            ablated.add(wide(x) @ direction.unit.to(wide(x)), wide(x).norm(dim=-1))
        restored.add(model.last_logits([prompt]) - before, before.abs().max())
        if math.isnan(edited.absolute):
            continue
        try:
            # With post-norms the edit needs allow_gap: here its gap is what is measured.
            with model.hooks(Orthogonalize(direction, allow_gap=bool(norm))):
                by_weights = model.last_logits([prompt])
        except RefusalLensError as refusal:
            edited.unmeasured(str(refusal), absent=False)
        else:
            edited.add(by_weights - rows[end], rows[end].abs().max())
    yield "writes sum to the stream", stream
    yield "heads and bias sum to attention", heads
    yield "parts sum to resid · r̂ at every layer", whole
    yield "sources sum to heads", sources
    if experts:
        neurons.unmeasured("a mixture of experts has no neurons that all tokens share")
    yield "neurons and bias sum to the MLP", neurons
    if cap := model.backend.logit_cap():
        logits.note = f"before the cap of {cap:g}; the cap is not linear, so no parts sum to what it gives"
    yield "logit parts sum to the logits", logits
    yield "ablation by hooks leaves no component", ablated
    yield "leaving the context restores the model", restored
    if norm and not math.isnan(edited.absolute):
        edited.unmeasured(
            f"no identity here: a norm ({norm}) rescales what the weights write, so hooks and weights "
            f"differ by nature (largest logit gap measured: {edited.absolute:.2g}, {edited.relative:.0%} of the "
            "largest logit); use the hooks"
        )
    yield "orthogonalized weights = ablation by hooks", edited
    yield "padded = alone", _padding(model, prompts, alone)


def _stream(
    model: HookedChatModel, prompt: str, direction: Direction, error: _Error
) -> tuple[Float[Tensor, "1 vocab"], tuple[Float[Tensor, "layer"], Float[Tensor, "layer"], Float[Tensor, ""]]]:
    """resid_post = resid_pre + attn_out + mlp_out, entry by entry, at every layer and token. Returns the next token's
    logits, and of the last token attn_out · r̂ and the length of attn_out by layer, and the stream's largest length."""
    sites = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")
    reader, end = Cache([f"blocks.{layer}.{site}" for layer in range(model.n_layers) for site in sites]), NextLogits()
    rows = model.run([prompt], read=[reader, end])
    cached, along, sizes, lengths = rows[reader], [], [], []
    for layer in range(model.n_layers):
        parts = [cached[f"blocks.{layer}.{site}"] for site in sites]
        pre, attn, mlp, post = (x.double() for x in parts)
        error.add(pre + attn + mlp - post, post.abs().max())
        write, stream = (wide(x)[0, -1] for x in (parts[1], parts[3]))
        along.append(write @ direction.unit.to(write))
        sizes.append(write.norm())
        lengths.append(stream.norm())
    return rows[end], (torch.stack(along).cpu(), torch.stack(sizes).cpu(), torch.stack(lengths).max().cpu())


def _padding(model: HookedChatModel, prompts: Sequence[str], alone: Sequence[Tensor]) -> _Error:
    """Logits of a padded batch against each prompt alone."""
    error = _Error("norm", "largest logit")
    for row, own in zip(model.last_logits(list(prompts)), alone, strict=True):
        error.add(row - own, own.abs().max())
    return error


def orthogonalization_gap(model: HookedChatModel, direction: Direction, prompts: Sequence[str]) -> float:
    """Measure the largest logit difference, at any token of ``prompts``, between ablation by hooks and by weights.

    0 to rounding for a pre-norm model; a property of the architecture where norms follow the writes.
    """
    worst = 0.0
    for prompt in prompts:
        tokens = model.tokenize([prompt])
        with model.hooks(Ablate(direction)):
            by_hooks = model.logits(tokens, last_only=False)
        with model.hooks(Orthogonalize(direction, allow_gap=True)):
            by_weights = model.logits(tokens, last_only=False)
        worst = np.maximum(worst, float((by_hooks.double() - by_weights.double()).abs().max()))
    return float(worst)
