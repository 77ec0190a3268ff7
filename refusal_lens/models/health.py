"""Checks of a model: no hook left on it, no NaN or infinite weight or activation."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from ..hooks.base import Model

# Logits of two ways to compute attention: a wrong one differs by half of their length.
ATTENTION_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-2}
# resid_post against the sum of the writes, relative to the largest value: rounding of a few additions.
SUM_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}


def active_hooks(tl: Any) -> tuple[str, ...]:
    """Hook points of a TransformerLens model that have a function on them, one name each."""
    return tuple({id(point): name for name, point in tl.hook_dict.items() if _foreign(point)}.values())


def n_hooks(tl: Any) -> int:
    """Number of functions on the hook points of a TransformerLens model, without its own."""
    return sum(_foreign(point) for point in {id(point): point for point in tl.hook_dict.values()}.values())


def _foreign(point: Any) -> int:
    """Number of hooks but TransformerLens's own, which join hook points of OPT's and others' MLPs."""
    handles = [*point.fwd_hooks, *point.bwd_hooks]
    modules = [str(getattr(getattr(h, "user_hook", None), "__module__", "")) for h in handles]
    own = [h.is_permanent and name.startswith("transformer_lens.") for h, name in zip(handles, modules, strict=True)]
    return own.count(False)


def check_unhooked(tl: Any, name: str) -> None:
    """Refuse someone else's hooks, of a context left open or forgotten, with a ``ModelError`` that names them."""
    if names := active_hooks(tl):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ModelError(
            f"{name} has hooks on {', '.join(names[:3])}{more}, which would change every result: leave the "
            "`with model.hooks(...)` that is still open, or call model.tl.reset_hooks()"
        )


@torch.no_grad()
def check_weights(module: Any, name: str) -> None:
    """Refuse NaN and infinite weights with a ``ModelError`` that names the first parameter, as the checkpoint does."""
    for parameter, weight in module.named_parameters():
        if not weight.is_floating_point() or weight.is_meta:
            continue
        # One pass without a mask of the weight's size, in the weight's dtype (25 times as fast in bfloat16): a sum is
        # finite only if every term is, and where finite terms overflow it, the mask decides.
        if not torch.isfinite(weight.sum()) and (bad := int((~torch.isfinite(weight)).sum())):
            raise ModelError(
                f"{name}: {bad} of {weight.numel()} entries of {parameter} are NaN or infinite; the checkpoint is "
                "damaged, or was converted to a dtype too small for it"
            )


def check_activations(model: str, cached: Mapping[str, Tensor]) -> None:
    """Refuse NaN and infinite activations with a ``ModelError`` that names the first hook point."""
    for name, value in cached.items():
        if not torch.isfinite(value).all():
            raise ModelError(
                f"{model}: {name} holds NaN or infinite values; load the model in a wider dtype "
                "(dtype='bfloat16' or 'float32')"
            )


def _few_tokens(model: Model) -> Any:
    """A few tokens cost what reading the weights costs; the first one's activations are the largest."""
    tokens = model.tokenize(["Hello there, how are you?"])
    return replace(tokens, ids=tokens.ids[:, :4], mask=tokens.mask[:, :4])


def check_attention(model: Model) -> float:
    """Refuse attention with hook points that gives other logits than the checkpoint's own code, with a ``ModelError``.

    TransformerLens reimplements most architectures' attention: a wrong order of heads would show nowhere else. Where
    both give the same bits, the own code runs in passes that hook nothing inside.

    Returns:
        Relative length of the difference; 0 where the own code takes part in every pass, or does not run alone.
    """
    tokens = _few_tokens(model)
    ours = model.logits(tokens).double()
    try:
        with model.backend.own_attention():
            gap = float((model.logits(tokens).double() - ours).norm() / ours.norm())
    except (TypeError, RuntimeError, AttributeError):
        return 0.0
    limit = ATTENTION_TOLERANCE.get(model.dtype, 0.2)
    if not gap <= limit:
        raise ModelError(
            f"{model.name}: TransformerLens computes its attention differently from the checkpoint's own code (the "
            f"logits differ by {gap:.2g} of their length, limit {limit:g}), so every result would be another model's; "
            "this architecture needs another version of transformer-lens"
        )
    model.backend.same_attention(gap == 0)
    return gap


def check_writes(model: Model) -> float:
    """Verify that resid_post = resid_pre + attn_out + mlp_out at every layer, and that it is the next resid_pre; else a
    ``ModelError`` that names the layer and hook. Returns the largest relative error."""
    sites = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")
    names = [f"blocks.{layer}.{site}" for layer in range(model.n_layers) for site in sites]
    for name in names:
        if not model.backend.has_hook(name):
            raise ModelError(
                f"{model.name} has no hook point {name!r}, so its residual stream can't be followed; "
                "this architecture is not supported"
            )
    try:
        cached = model.cache(_few_tokens(model), names)
    except (RuntimeError, TypeError, AttributeError, NotImplementedError) as failure:
        reason = (str(failure).splitlines() or [type(failure).__name__])[0]
        raise ModelError(f"{model.name} does not run as TransformerLens wraps it: {reason}") from failure
    check_activations(model.name, cached)
    tolerance, worst, previous = SUM_TOLERANCE.get(model.dtype, 1e-2), 0.0, None
    for layer in range(model.n_layers):
        pre, attn, mlp, post = (cached[f"blocks.{layer}.{site}"].double() for site in sites)
        error = float((pre + attn + mlp - post).abs().max() / post.abs().max())
        if not error <= tolerance:  # also true for NaN
            raise ModelError(
                f"{model.name}, layer {layer}: resid_pre + attn_out + mlp_out misses resid_post by {error:.2g} of "
                f"its largest value (limit {tolerance:g} in {model.dtype}): some write to the residual stream is "
                "not hooked"
            )
        worst = max(worst, error)
        if previous is not None and not torch.equal(previous, pre):
            gap = float((previous - pre).abs().max() / pre.abs().max())
            if not gap <= tolerance:
                raise ModelError(f"{model.name}: resid_post of layer {layer - 1} is not resid_pre of layer {layer}")
        previous = post
    return worst
