"""``TransformerBridge`` (transformer-lens 4.x) as a backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from inspect import signature
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig

from ..errors import ModelError
from ..hooks.readout import NormWeights
from .backend import Backend, HookFn, _cache_as_past_key_values, _filled_cache, optional_weight
from .writing_weights import WritingWeight, core, linear, named

EXPERT_OUTPUTS = ("down_proj", "w2", "fc2", "c_proj", "wo", "dense_4h_to_h", "output_linear")


class BridgeBackend(Backend):
    """``TransformerBridge``: the Hugging Face model with TransformerLens's hook points inside."""

    kind = "TransformerBridge"

    def __init__(self, tl: Any):
        self.hf = tl.original_model
        self._points: dict[str, tuple[str, Any]] = {}  # hook points by name or alias, looked up at first use
        super().__init__(tl)
        self.module = self.hf
        self._attentions = [block.attn for block in tl.blocks if hasattr(block, "attn")]
        self._norms = [m for m in self._modules if hasattr(type(m), "_hf_autograd_forward_with_hooks")]
        # Its name since transformers 5.24, which warns of the old one.
        known = signature(type(self.hf).forward).parameters
        self._cache_argument = "cache" if "cache" in known else "past_key_values"
        config = self.hf.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        # A window over a cached prefix is counted in cache slots, so padding between would shift it.
        self.supports_prefix = kinds == {"full_attention"} and not getattr(config, "use_sliding_window", False)
        if getattr(config, "sliding_window", None) and not getattr(config, "layer_types", None):
            self.supports_prefix = False
        self._blocks_return_tuples: bool | None = None  # seen in the first pass

    @contextmanager
    def _passing(self) -> Iterator[None]:
        """Make the bridge fast, and right under transformers 5.24, during a pass; afterwards it is as it was."""
        with super()._passing(), ExitStack() as stack:
            # The last position's slice is strided; torch then multiplies row by row and copies W_U for each (bfloat16
            # on CPU, 32 rows, 152k tokens: 37 s instead of 0.02 s).
            handles = [self.tl.unembed.register_forward_pre_hook(_contiguous_input)]
            for attention in self._attentions:
                handles.append(attention.register_forward_pre_hook(_cache_as_past_key_values, with_kwargs=True))
            if self._blocks_return_tuples is None:
                handles.append(self.layers[0].register_forward_hook(self._see_tuple))
            for handle in handles:
                stack.callback(handle.remove)
            name = "_hf_autograd_forward_with_hooks"
            fresh = [norm for norm in self._norms if name not in norm.__dict__]  # a pass within a pass: none
            for norm in fresh:
                norm.__dict__[name] = MethodType(_norm_unless_read, norm)
                stack.callback(norm.__dict__.pop, name)
            yield

    def _see_tuple(self, module: Any, args: Any, output: Any) -> None:
        self._blocks_return_tuples = isinstance(output, tuple)

    def _run(self, **call: Any) -> Tensor:
        with self._passing():
            return self.hf(**call).logits

    def _hooks(self, hooks: Sequence[tuple[str, HookFn]]) -> AbstractContextManager:
        # TransformerLens looks all names and aliases up in every context, which costs as much as a small layer. With
        # its compatibility mode a hook is called once per alias, which is left to it.
        if getattr(self.tl, "compatibility_mode", False) or not hasattr(self.tl, "_remove_temporary_hook"):
            return self.tl.hooks(fwd_hooks=list(hooks))
        return self._hooked(hooks)

    @contextmanager
    def _hooked(self, hooks: Sequence[tuple[str, HookFn]]) -> Iterator[None]:
        """TransformerLens's hook context, with hook points that are looked up once per name."""
        from transformer_lens.model_bridge.bridge_core import build_alias_to_canonical_map

        tl, added = self.tl, []
        level = tl.context_level = getattr(tl, "context_level", 0) + 1
        try:
            for name, function in hooks:
                if name not in self._points:
                    known = tl.hook_dict
                    self._points[name] = tl._resolve_hook_point(name, build_alias_to_canonical_map(known), known)
                canonical, point = self._points[name]
                tl.check_hooks_to_add(point, canonical, function, dir="fwd")
                added.append((point, point.add_hook(function, dir="fwd", level=level)))
            yield
        finally:
            for point, handle in added:
                tl._remove_temporary_hook(point, "fwd", handle)
            tl.context_level -= 1

    def _hook_names(self) -> list[str]:
        aliases = getattr(self.tl, "hook_aliases", {})
        return [*self.tl.hook_dict, *aliases]

    def _norm(self, module: Any, site: str) -> NormWeights:
        rms, weight = bool(module.uses_rms_norm), optional_weight(module, "weight")
        offset = getattr(module, "uses_weight_offset", None)
        if offset is None:  # before 4.x the configuration alone says whether the weight counts from 1
            offset = rms and bool(getattr(self.tl.cfg, "rmsnorm_uses_offset", False))
        weight = weight + 1 if offset and weight is not None else weight
        return NormWeights(site, weight, None if rms else optional_weight(module, "bias"), not rms)

    @property
    def layers(self) -> Any:
        """The stack of blocks as the Hugging Face model runs it."""
        return self.tl.blocks

    def logits(self, ids, mask, last_only=True, prefix=None, start=None, prefix_mask=None):
        extra: dict[str, Any] = {}
        if prefix is not None:
            cache, length = _filled_cache(prefix, len(ids)), prefix[0][0].shape[2]
            before = torch.ones(len(ids), length, dtype=torch.bool, device=mask.device)
            full = torch.cat([before if prefix_mask is None else prefix_mask, mask], 1)
            extra = {self._cache_argument: cache, "use_cache": True}
        else:
            full = mask
            extra = {"use_cache": False}
        if not bool(full.all()):
            # Positions count real tokens only; without this every padded row would be shifted.
            extra["attention_mask"] = full.long()
            extra["position_ids"] = (full.long().cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        if last_only:
            extra["logits_to_keep"] = 1
        with nullcontext() if start is None else self._skipping(*start):
            return self._run(input_ids=ids, **extra)

    def prefix_cache(self, ids, mask=None):
        cache = DynamicCache()
        rows = ids if ids.ndim == 2 else ids[None]
        call = {"input_ids": rows, self._cache_argument: cache, "use_cache": True, "logits_to_keep": 1}
        if mask is not None and not bool(mask.all()):
            call["attention_mask"] = mask.long()
            call["position_ids"] = (mask.long().cumsum(-1) - 1).clamp_min(0)
        self._run(**call)
        layers: list[Any] = cache.layers
        if not layers:
            raise ModelError(f"{self.kind} kept no keys and values: this transformers passes its cache another way")
        return [(layer.keys, layer.values) for layer in layers]

    def packed_logits(self, ids, positions, mask, row, end, copies, start=None, prefix=None):
        # Added to the scores as it is, so that no kind of mask is made anew inside.
        added = torch.zeros(mask.shape, dtype=self.dtype, device=mask.device)
        added = added.masked_fill(~mask, torch.finfo(self.dtype).min)[:, None]
        call = {
            "input_ids": ids.repeat(copies, 1),
            "position_ids": positions.repeat(copies, 1),
            "attention_mask": added.repeat(copies, 1, 1, 1),
            "logits_to_keep": 0,  # all: those wanted are taken before they are unembedded
            "use_cache": prefix is not None,
        }
        if prefix is not None:
            prefix.copies = copies
            call[self._cache_argument] = prefix
        with nullcontext() if start is None else self._skipping(*start), self._ending_at(row, end, copies):
            return self._run(**call)

    @contextmanager
    def _ending_at(self, row: Tensor, end: Tensor, copies: int) -> Iterator[None]:
        """Run the last block's MLP and the unembedding at the positions whose logits are wanted.

        Nothing reads them elsewhere. What they see and give is [copy, prompt, ...].
        """
        shape: tuple[int, ...] = ()

        def some(x: Tensor) -> Tensor:
            return x.unflatten(0, (copies, -1))[:, row.to(x.device), end.to(x.device)]

        def before(module: Any, args: tuple) -> tuple:
            nonlocal shape
            shape = args[0].shape
            return (some(args[0]), *args[1:])

        def after(module: Any, args: tuple, output: Any) -> Any:
            part = output[0] if isinstance(output, tuple) else output
            whole = part.new_zeros(*shape[:-1], part.shape[-1])
            whole.unflatten(0, (copies, -1))[:, row.to(part.device), end.to(part.device)] = part
            return (whole, *output[1:]) if isinstance(output, tuple) else whole

        mlp = self.layers[self.n_layers - 1].mlp
        handles = [
            mlp.register_forward_pre_hook(before),
            mlp.register_forward_hook(after),
            self.tl.unembed.register_forward_pre_hook(lambda module, args: (some(args[0]), *args[1:])),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _skipping(self, layer: int, resid: Tensor) -> Iterator[None]:
        """Let blocks before ``layer`` pass ``resid`` on instead of running."""
        if self._blocks_return_tuples is None:
            self._run(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device), use_cache=False)
        patched = list(self.layers)[:layer]
        value = (resid,) if self._blocks_return_tuples else resid

        def passthrough(*args: Any, **kwargs: Any) -> Any:
            return value

        try:
            for block in patched:
                # Not setattr: a bridge's block hands attributes on to the module it wraps.
                block.__dict__["forward"] = passthrough
            if layer == 0:
                with self.hooks([("blocks.0.hook_resid_pre", lambda _, hook: resid)]):
                    yield
            else:
                yield
        finally:
            for block in patched:
                block.__dict__.pop("forward", None)

    def attribution_patch(self, clean, corrupt, metric):
        from transformer_lens.tools.analysis.attribution_patching import attribution_patch

        # Weights need no gradient here, but without one at the start autograd records nothing.
        weight = next(self.hf.get_input_embeddings().parameters())
        before = weight.requires_grad
        weight.requires_grad_(True)
        try:
            with self._passing(), torch.enable_grad():
                nodes = attribution_patch(self.tl, clean, corrupt, metric).node_scores
        finally:
            weight.requires_grad_(before)
        scores: dict[tuple[int, int], float] = {}
        for node, score in nodes.items():
            if node.kind == "attn_head_out" and node.layer is not None and node.head is not None:
                head = (node.layer, node.head)
                scores[head] = scores.get(head, 0.0) + score
        return scores

    def generate(self, ids, mask, max_new_tokens, eos_ids, pad_id, temperature=0.0):
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=temperature > 0,
            num_beams=1,
            use_cache=True,
            **({"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}),
            eos_token_id=eos_ids or None,
            pad_token_id=pad_id,
        )
        # transformers fills what is not set from the checkpoint's config: suppressed tokens, penalties, stop strings.
        own, self.hf.generation_config = self.hf.generation_config, GenerationConfig()
        try:
            with self._passing():
                out = self.hf.generate(input_ids=ids, attention_mask=mask.long(), generation_config=config)
        finally:
            self.hf.generation_config = own
        return out[:, ids.shape[1] :]

    def generation_requests(self):
        config = getattr(self.hf, "generation_config", None)
        asked = {} if config is None else config.to_diff_dict()
        return {k: v for k, v in asked.items() if not k.endswith(("_token_id", "_version")) and not k.startswith("_")}

    def end_tokens(self):
        own = getattr(getattr(self.hf, "generation_config", None), "eos_token_id", None)
        return {int(i) for i in (own if isinstance(own, (list, tuple)) else [own]) if i is not None}

    def processed(self):
        return bool(getattr(self.tl, "compatibility_mode", False))

    def _embedding_weights(self) -> list[WritingWeight]:
        found = named("embed", self.tl.embed, ("weight",), -1)
        positions = dict(self.tl.named_children()).get("pos_embed")
        # Rotary models may have a module of that name without a table.
        if positions is not None and any(p.ndim == 2 for p in core(positions).parameters(recurse=False)):
            found += named("pos_embed", positions, ("weight",), -1)
        return found

    def _output_weights(self, where: str, part: str, module: Any) -> list[WritingWeight]:
        output, children = {"attn": "o", "mlp": "out"}[part], dict(module.named_children())
        if output in children:
            return linear(f"{where}.{output}", children[output])
        return _expert_outputs(where, module) if part == "mlp" else []


def _expert_outputs(where: str, module: nn.Module) -> list[WritingWeight]:
    """Output weights of a mixture of experts: stacked [expert, d_model, d_mlp] parameters, or one Linear each."""
    found: list[WritingWeight] = []
    for path, inner in module.named_modules():
        label = ".".join(part for part in path.split(".") if part != "_original_component")
        if label.split(".")[-1] in EXPERT_OUTPUTS and "weight" in inner._parameters:
            found += linear(f"{where}.{label}", inner)
        stacked = inner._parameters.get("down_proj")
        if stacked is not None and stacked.ndim == 3:
            transposed = bool(getattr(inner, "is_transposed", False))  # [expert, input, output] (gpt-oss)
            found.append(WritingWeight(f"{where}.{label}.down_proj", inner, "down_proj", -1 if transposed else 1))
            found += named(f"{where}.{label}", inner, ("down_proj_bias",), -1)
    return found


def _norm_unless_read(module: Any, x: Tensor) -> Tensor:
    """A bridge's norm, which computes ``hook_scale`` and ``hook_normalized`` only when a hook is there to see them.

    TransformerLens computes both beside the norm itself on every call, which costs as much as ablation at every write.
    The output is the wrapped norm's either way.
    """
    norm, points = module.original_component, (module.hook_scale, module.hook_normalized)
    seen = any(point._forward_pre_hooks or point._forward_hooks or point._backward_hooks for point in points)
    if seen or isinstance(norm, torch.nn.Identity):
        return type(module)._hf_autograd_forward_with_hooks(module, x)
    return norm(x).to(x.dtype)


def _contiguous_input(module: Any, args: tuple) -> tuple:
    return (args[0].contiguous(), *args[1:]) if args else args
