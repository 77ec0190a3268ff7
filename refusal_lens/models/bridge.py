"""``TransformerBridge`` (transformer-lens 4.x) as a backend."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from inspect import signature
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig

from ..errors import ModelError
from ..hooks.readout import NormWeights
from .backend import Backend, HookFn, _cache_as_past_key_values, _filled_cache, optional_weight
from .quick import StepAside, instead
from .writing_weights import WritingWeight, core, linear, named, not_found

MIXERS = ("linear_attn", "conv")  # in attention's place in some layers (Qwen3-Next, LFM2)
EXPERT_OUTPUTS = ("down_proj", "w2", "fc2", "c_proj", "wo", "dense_4h_to_h", "output_linear")


class BridgeBackend(Backend):
    """``TransformerBridge``: the Hugging Face model with TransformerLens's hook points inside."""

    kind = "TransformerBridge"

    def __init__(self, tl: Any):
        self.hf, self.layers = tl.original_model, tl.blocks
        self._points: dict[str, tuple[str, Any]] = {}  # hook points by name or alias, looked up at first use
        super().__init__(tl)
        self.module = self.hf
        self._attentions = [block.attn for block in tl.blocks if hasattr(block, "attn")]
        self._aside = StepAside(tl, self.dtype)
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
        """Make the bridge fast, and correct under transformers 5.24, during a pass; restore it afterwards."""
        edits = [_cache_as_past_key_values, *([_mask_that_float32_holds] if self.dtype == torch.float64 else [])]
        with super()._passing(), ExitStack() as stack:
            # The last position's slice is strided; torch then multiplies row by row and copies W_U for each (bfloat16
            # on CPU, 32 rows, 152k tokens: 37 s instead of 0.02 s).
            stack.enter_context(self.tl.unembed.register_forward_pre_hook(_contiguous_input))
            for attention, edit in product(self._attentions, edits):
                stack.enter_context(attention.register_forward_pre_hook(edit, with_kwargs=True))
            if self._blocks_return_tuples is None:
                stack.enter_context(self.blocks[0].register_forward_hook(self._see_tuple))
            yield

    def _see_tuple(self, module: Any, args: Any, output: Any) -> None:
        self._blocks_return_tuples = isinstance(output, tuple)

    def _run(self, **call: Any) -> Tensor:
        with self._passing(), self._aside.during():
            return self.hf(**call).logits

    def _hooks(self, hooks: Sequence[tuple[str, HookFn]]) -> AbstractContextManager:
        # TransformerLens looks all names and aliases up in every context, which costs as much as a small layer. With
        # its compatibility mode a hook is called once per alias, which is left to it.
        known = [(self._mixer_outputs.get(name, name), function) for name, function in hooks]
        if getattr(self.tl, "compatibility_mode", False) or not hasattr(self.tl, "_remove_temporary_hook"):
            return self.tl.hooks(fwd_hooks=known)
        return self._hooked(known)

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
        mixers = {n: name for n in range(len(self.blocks)) if (name := self._mixer(n))}
        self._mixer_outputs = {f"blocks.{n}.hook_attn_out": f"blocks.{n}.{name}.hook_out" for n, name in mixers.items()}
        return [*self.tl.hook_dict, *getattr(self.tl, "hook_aliases", {}), *self._mixer_outputs]

    def _mixer(self, layer: int) -> str:
        """Name of what a layer has in attention's place; "" where it has attention."""
        children = self.blocks[layer]._modules
        return "" if "attn" in children else next((name for name in MIXERS if name in children), "")

    def part(self, layer, part):
        name = self._mixer(layer) if part == "attn" else ""
        return (f"blocks.{layer}.{name}", self.blocks[layer]._modules[name]) if name else super().part(layer, part)

    def _norm(self, module: Any, site: str) -> NormWeights:
        rms, weight = bool(module.uses_rms_norm), optional_weight(module, "weight")
        offset = getattr(module, "uses_weight_offset", None)
        if offset is None:  # before 4.x the configuration alone says whether the weight counts from 1
            offset = rms and bool(getattr(self.tl.cfg, "rmsnorm_uses_offset", False))
        weight = weight + 1 if offset and weight is not None else weight
        return NormWeights(site, weight, None if rms else optional_weight(module, "bias"), not rms)

    def logits(self, ids, mask, last_only=True, prefix=None, start=None, prefix_mask=None):
        call: dict[str, Any] = {"input_ids": ids, "use_cache": prefix is not None}
        if prefix is not None:
            call[self._cache_argument] = _filled_cache(prefix, len(ids))
            before = mask.new_ones(len(ids), prefix[0][0].shape[2]) if prefix_mask is None else prefix_mask
            mask = torch.cat([before, mask], 1)
        if last_only:
            call["logits_to_keep"] = int(last_only)
        with nullcontext() if start is None else self._skipping(*start):
            return self._run(**call, **_positions(mask, ids.shape[1]))

    def own_attention(self) -> AbstractContextManager:
        return instead({attention: attention.original_component.forward for attention in self._attentions})

    def same_attention(self, same: bool) -> None:
        eager = getattr(self.hf.config.get_text_config(), "_attn_implementation", "") == "eager"
        self._aside.same_attention = same and eager

    def prefix_cache(self, ids, mask=None):
        cache = DynamicCache()
        rows = ids if ids.ndim == 2 else ids[None]
        call = {"input_ids": rows, self._cache_argument: cache, "use_cache": True, "logits_to_keep": 1}
        self._run(**call, **({} if mask is None else _positions(mask, rows.shape[1])))
        layers: list[Any] = cache.layers
        if not layers:
            raise ModelError(f"{self.kind} kept no keys and values: this transformers passes its cache differently")
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

        mlp, unembed = self.part(self.n_layers - 1, "mlp")[1], self.tl.unembed
        last = unembed.register_forward_pre_hook(lambda module, args: (some(args[0]), *args[1:]))
        with last, mlp.register_forward_pre_hook(before), mlp.register_forward_hook(after):
            yield

    @contextmanager
    def _skipping(self, layer: int, resid: Tensor) -> Iterator[None]:
        """Let blocks before ``layer`` pass ``resid`` on instead of running."""
        if self._blocks_return_tuples is None:
            self._run(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device), use_cache=False)
        value = (resid,) if self._blocks_return_tuples else resid
        first = [("blocks.0.hook_resid_pre", lambda _, hook: resid)] if layer == 0 else []
        with instead(dict.fromkeys(self.blocks[:layer], lambda *args, **kwargs: value)), self.hooks(first):
            yield

    def attribution_patch(self, clean, corrupt, metric):
        from transformer_lens.tools.analysis.attribution_patching import attribution_patch

        for layer in range(self.n_layers):
            self.output_weight(layer)  # refuses a layer without heads
        # Weights need no gradient here, but without one at the start autograd records nothing.
        weight = next(self.hf.get_input_embeddings().parameters())
        before = weight.requires_grad
        weight.requires_grad_(True)
        try:
            with self._passing(), torch.enable_grad():
                nodes = attribution_patch(self.tl, clean, corrupt, metric).node_scores
        finally:
            weight.requires_grad_(before)
        found: list[tuple[Any, float]] = [(x, score) for x, score in nodes.items() if x.kind == "attn_head_out"]
        width = 1 + max(node.head for node, _ in found)  # of latent attention every entry of z is a node
        scores: dict[tuple[int, int], float] = {}
        for node, score in found:
            head = (node.layer, node.head * self.n_heads // width)
            scores[head] = scores.get(head, 0.0) + score
        return scores

    def generate(self, ids, mask, max_new_tokens, eos_ids, pad_id, temperature=0.0, prefix=None):
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
            given = {} if prefix is None else {"past_key_values": _filled_cache(prefix, len(ids))}
            with self._passing(), self._aside.during():
                out = self.hf.generate(input_ids=ids, attention_mask=mask.long(), generation_config=config, **given)
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

    def output_weight(self, layer):
        # Not W_O, which refuses latent attention before its first pass.
        where, module = self.part(layer, "attn")
        if self._mixer(layer):
            raise ModelError(
                f"layer {layer} has no attention heads ({where}): whole components, extraction, selection and ablation "
                "are exact here, but nothing that needs single heads is available"
            )
        weight = next(iter(self._output_weights(where, "attn", module)), None)
        if weight is None:
            raise not_found(self.kind, where, module)
        rows = weight.parameter.movedim(weight.axis, -1)
        if rows.ndim != 2 or len(rows) % self.n_heads or rows.shape[1] != self.d_model:
            raise ModelError(
                f"{weight.where} has the shape {tuple(weight.parameter.shape)}, which does not fit {self.n_heads} "
                f"heads and a stream of {self.d_model}: it is quantized, or this layer differs from the others"
            )
        return rows.unflatten(0, (self.n_heads, -1))

    def scoring(self, layer):
        inner: Any = core(self.part(layer, "attn")[1])
        scale = next((s for n in ("scaling", "softmax_scale") if (s := getattr(inner, n, None))), None)
        sinks = getattr(inner, "sinks", None)
        width = inner.head_dim if hasattr(inner, "head_dim") else self.d_head
        cap = float(getattr(inner, "attn_logit_softcapping", None) or 0.0)
        return float(scale or width**-0.5), cap, None if sinks is None else sinks.detach()

    @property
    def write_scale(self):
        return float(getattr(self.blocks[0], "residual_contribution_scale", 1.0))

    @property
    def logit_scale(self):
        divided = getattr(self.hf.config.get_text_config(), "logits_scaling", None)
        return float(getattr(self.hf, "logit_scale", None) or 1.0) / float(divided or 1.0)

    def _embedding_weights(self) -> list[WritingWeight]:
        found = named("embed", self.tl.embed, ("weight",), -1)
        positions = dict(self.tl.named_children()).get("pos_embed")
        # Rotary models may have a module of that name without a table.
        if positions is not None and any(p.ndim == 2 for p in core(positions).parameters(recurse=False)):
            found += named("pos_embed", positions, ("weight",), -1)
        return found

    def _output_weights(self, where: str, part: str, module: Any) -> list[WritingWeight]:
        output, children = {"attn": "o", "mlp": "out"}[part], dict(module.named_children())
        if part == "attn" and output not in children:
            output, children = "out_proj", dict(core(module).named_children())  # of a mixer
        if output in children:
            return linear(f"{where}.{output}", children[output])
        return _expert_outputs(where, module, self.d_model) if part == "mlp" else []


def _expert_outputs(where: str, module: nn.Module, d_model: int) -> list[WritingWeight]:
    """Output weights of a mixture of experts: stacked parameters, or one Linear each."""
    found: list[WritingWeight] = []
    for path, inner in module.named_modules():
        label = ".".join(part for part in path.split(".") if part != "_original_component")
        if label.split(".")[-1] in EXPERT_OUTPUTS and "weight" in inner._parameters:
            found += linear(f"{where}.{label}", inner)
        stacked = inner._parameters.get("down_proj")
        if stacked is not None and stacked.ndim == 3:
            found.append(WritingWeight(f"{where}.{label}.down_proj", inner, "down_proj", _output_axis(inner, d_model)))
            found += named(f"{where}.{label}", inner, ("down_proj_bias",), -1)
    return found


def _output_axis(experts: nn.Module, d_model: int) -> int:
    """Axis of d_model in stacked output weights: [expert, output, input], or transposed (gpt-oss, Llama 4)."""
    weight, gate = (experts._parameters.get(name) for name in ("down_proj", "gate_up_proj"))
    assert weight is not None
    if weight.shape[1] != weight.shape[2] or gate is None:
        return 1 if weight.shape[1] == d_model else -1
    return -1 if gate.shape[1] == d_model else 1  # as wide as long: the input's weights, twice as wide, tell


def _positions(mask: Tensor, n: int) -> dict[str, Tensor]:
    """The mask, and positions of the last ``n`` columns that count real tokens only, where rows have padding: without
    these every padded row would be shifted."""
    if bool(mask.all()):
        return {}
    return {"attention_mask": mask.long(), "position_ids": (mask.long().cumsum(-1) - 1).clamp_min(0)[:, -n:]}


def _mask_that_float32_holds(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Models take the softmax of float64 scores in float32, where float64's lowest value is -inf and padding NaN."""
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.is_floating_point():
        kwargs = {**kwargs, "attention_mask": mask.clamp_min(torch.finfo(torch.float32).min / 2)}
    return args, kwargs


def _contiguous_input(module: Any, args: tuple) -> tuple:
    return (args[0].contiguous(), *args[1:]) if args else args
