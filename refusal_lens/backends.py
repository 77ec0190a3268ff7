"""The two kinds of TransformerLens model behind one small interface.

Everything that differs between ``TransformerBridge`` (4.x) and ``HookedTransformer`` (3.x) is here; the rest of
the project speaks TransformerLens's hook names and these methods only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import signature
from itertools import count
from types import MethodType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from .errors import ModelError
from .weights import NormWeights, WeightAccess, optional_weight

HookFn = Callable[..., Any]
PrefixCache = list[tuple[Tensor, Tensor]]
_LEVELS = count(1_000_000)  # above the depths that TransformerLens counts by itself


class Backend(WeightAccess):
    """What the wrapper asks of a TransformerLens model.

    Args:
        tl: the TransformerLens model.
    """

    kind = ""
    supports_prefix = False

    def __init__(self, tl: Any):
        self.tl = tl
        tl.eval()
        cfg = tl.cfg
        self.n_layers, self.n_heads = int(cfg.n_layers), int(cfg.n_heads)
        self.d_model, self.d_head = int(cfg.d_model), int(cfg.d_head)
        self.d_vocab = int(self.unembed_weight().shape[-1])
        self.n_ctx = int(getattr(cfg, "n_ctx", None) or 0)
        self.hook_names = frozenset(self._hook_names())

    # -- names ----------------------------------------------------------------------------------------------
    def _hook_names(self) -> list[str]:
        return list(self.tl.hook_dict)

    def hooks(self, hooks: Sequence[tuple[str, HookFn]]) -> AbstractContextManager:
        """TransformerLens's own hook context."""
        return self.tl.hooks(fwd_hooks=list(hooks))

    def has_hook(self, name: str) -> bool:
        """Whether ``name`` is a hook point of this model (aliases included)."""
        return name in self.hook_names

    # -- running --------------------------------------------------------------------------------------------
    def logits(
        self,
        ids: Int[Tensor, "batch pos"],
        mask: Bool[Tensor, "batch pos"],
        last_only: bool = True,
        prefix: PrefixCache | None = None,
        start: tuple[int, Float[Tensor, "batch pos d_model"]] | None = None,
        prefix_mask: Bool[Tensor, "batch prefix"] | None = None,
    ) -> Float[Tensor, "batch kept vocab"]:
        """Logits of the last position, or of all.

        Args:
            ids: left-padded token ids, without the prefix's tokens.
            mask: True at real tokens.
            prefix: keys and values of what stands before (see ``prefix_cache``), common to all rows or a row each.
            prefix_mask: True at real tokens of the prefix, where it has padding.
            start: (layer, resid_pre of that layer): earlier blocks are skipped.
        """
        raise NotImplementedError

    def prefix_cache(
        self,
        ids: Int[Tensor, "*batch pos"],
        mask: Bool[Tensor, "batch pos"] | None = None,
    ) -> PrefixCache:
        """Keys and values of ``ids`` at every layer, for ``logits(prefix=...)``; ``mask`` where rows have padding."""
        raise ModelError(f"{self.kind} has no prefix cache here")

    def packed_logits(
        self,
        ids: Int[Tensor, "row pos"],
        positions: Int[Tensor, "row pos"],
        mask: Bool[Tensor, "row pos seen"],
        row: Int[Tensor, "prompt"],
        end: Int[Tensor, "prompt"],
        copies: int,
        start: tuple[int, Float[Tensor, "batch pos d_model"]] | None = None,
        prefix: SharedPrefix | None = None,
    ) -> Float[Tensor, "copy prompt vocab"]:
        """Logits at (``row``, ``end``) of rows that hold several prompts, in ``copies`` (see ``packing``).

        Args:
            ids, positions, mask, row, end: of one copy, as in ``packing.Pack``.
            copies: the batch is all rows of the first one, then of the second ...
            start: (layer, resid_pre of that layer), of the whole batch.
            prefix: takes the prefix's keys and values out of the first pass and puts them before every row.
        """
        raise ModelError(f"{self.kind} runs no packed prompts here")

    def attribution_patch(
        self, clean: Int[Tensor, "batch pos"], corrupt: Int[Tensor, "batch pos"], metric: Callable[[Tensor], Tensor]
    ) -> dict[tuple[int, int], float]:
        """TransformerLens's attribution patching: score of every (layer, head), summed over tokens."""
        raise ModelError(f"{self.kind} has no attribution patching; load the model as a TransformerBridge")

    def generate(
        self,
        ids: Int[Tensor, "batch pos"],
        mask: Bool[Tensor, "batch pos"],
        max_new_tokens: int,
        eos_ids: list[int],
        pad_id: int,
        temperature: float = 0.0,
    ) -> Int[Tensor, "batch new"]:
        """New tokens with the KV cache (greedy at temperature 0), padded with ``pad_id`` after an end token."""
        raise NotImplementedError


class BridgeBackend(Backend):
    """``TransformerBridge``: the Hugging Face model with TransformerLens's hook points inside."""

    kind = "TransformerBridge"

    def __init__(self, tl: Any):
        self.hf = tl.original_model
        super().__init__(tl)
        # The last position's slice is strided; torch then multiplies row by row and copies W_U for each (bfloat16
        # on CPU, 32 rows, 152k tokens: 37 s instead of 0.02 s).
        tl.unembed.register_forward_pre_hook(_contiguous_input)
        for block in tl.blocks:
            if hasattr(block, "attn"):
                block.attn.register_forward_pre_hook(_cache_as_past_key_values, with_kwargs=True)
        for module in tl.modules():
            if hasattr(module, "_hf_autograd_forward_with_hooks"):
                # Bound to its module, so that a deep copy's is bound to the copy's.
                module.__dict__["_hf_autograd_forward_with_hooks"] = MethodType(_norm_unless_read, module)
        # Its name since transformers 5.24, which warns of the old one.
        known = signature(type(self.hf).forward).parameters
        self._cache_argument = "cache" if "cache" in known else "past_key_values"
        config = self.hf.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        # A window over a cached prefix is counted in cache slots, so padding between would shift it.
        self.supports_prefix = kinds == {"full_attention"} and not getattr(config, "use_sliding_window", False)
        if getattr(config, "sliding_window", None) and not getattr(config, "layer_types", None):
            self.supports_prefix = False
        self._blocks_return_tuples = self._returns_tuple()

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
        if start is None:
            return self.hf(input_ids=ids, **extra).logits
        with self._skipping(*start):
            return self.hf(input_ids=ids, **extra).logits

    def prefix_cache(self, ids, mask=None):
        cache = DynamicCache()
        rows = ids if ids.ndim == 2 else ids[None]
        call = {"input_ids": rows, self._cache_argument: cache, "use_cache": True, "logits_to_keep": 1}
        if mask is not None and not bool(mask.all()):
            call["attention_mask"] = mask.long()
            call["position_ids"] = (mask.long().cumsum(-1) - 1).clamp_min(0)
        self.hf(**call)
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
            return self.hf(**call).logits

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

    @torch.inference_mode()
    def _returns_tuple(self) -> bool:
        """Whether blocks give a tuple (older transformers), asked before anyone's hooks are there to see the pass."""
        seen: list[bool] = []
        handle = self.layers[0].register_forward_hook(lambda m, i, out: seen.append(isinstance(out, tuple)))
        try:
            self.hf(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device), use_cache=False)
        finally:
            handle.remove()
        return seen[0]

    def attribution_patch(self, clean, corrupt, metric):
        from transformer_lens.tools.analysis.attribution_patching import attribution_patch

        # Weights need no gradient here, but without one at the start autograd records nothing.
        weight = next(self.hf.get_input_embeddings().parameters())
        before = weight.requires_grad
        weight.requires_grad_(True)
        try:
            with torch.enable_grad():
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
        # Spelled out, so that a checkpoint's own sampling or repetition penalty does not slip in.
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=temperature > 0,
            num_beams=1,
            use_cache=True,
            **({"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}),
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            eos_token_id=eos_ids or None,
            pad_token_id=pad_id,
        )
        out = self.hf.generate(input_ids=ids, attention_mask=mask.long(), generation_config=config)
        return out[:, ids.shape[1] :]


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


def _filled_cache(prefix: PrefixCache, rows: int) -> DynamicCache:
    """A cache of ``rows`` rows that a pass may add to; ``prefix`` itself is left as it is."""
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(prefix):
        cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
    return cache


class SharedPrefix(DynamicCache):
    """A cache whose first tokens come from the pass itself: the first row of each copy begins with them.

    What stands before all rows thus needs no pass of its own, which would be a small one. Later passes, over other rows
    of the same copies, find them here.

    Args:
        length: how many tokens.
    """

    def __init__(self, length: int):
        super().__init__()
        self.length, self.copies = length, 1
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Keys and values with the prefix before them; nothing else is kept."""
        new = [x.unflatten(0, (self.copies, -1)) for x in (key_states, value_states)]
        if layer_idx not in self._kept:
            keys, values = (x[:, :1, :, : self.length].clone() for x in new)
            self._kept[layer_idx] = keys, values
        return tuple(
            torch.cat([first.expand(-1, x.shape[1], -1, -1, -1), x], 3).flatten(0, 1)
            for first, x in zip(self._kept[layer_idx], new, strict=True)
        )


def _cache_as_past_key_values(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Give a bridge's attention the cache under the name it knows.

    transformers 5.24 hands ``cache`` down; transformer-lens up to 4.3 reads ``past_key_values`` and runs without a
    cache where it finds none: replies then forget their prompt, and nothing says so.
    """
    if "cache" in kwargs and kwargs.get("past_key_values") is None:
        kwargs = {name: x for name, x in kwargs.items() if name != "cache"} | {"past_key_values": kwargs["cache"]}
    return args, kwargs


class HookedTransformerBackend(Backend):
    """``HookedTransformer`` (transformer-lens 3.x and older)."""

    kind = "HookedTransformer"

    @contextmanager
    def hooks(self, hooks: Sequence[tuple[str, HookFn]]) -> Iterator[None]:
        """A context that removes its own hooks, whatever the order in which contexts are left.

        TransformerLens's own removes those of the context entered last, as of the count at the time of leaving.
        """
        level = next(_LEVELS)
        try:
            for name, function in hooks:
                self.tl.add_hook(name, function, level=level)
            yield
        finally:
            for name, _ in hooks:
                self.tl.hook_dict[name].remove_hooks("fwd", level=level)

    def logits(self, ids, mask, last_only=True, prefix=None, start=None, prefix_mask=None):
        if prefix is not None:
            raise ModelError("HookedTransformer runs without a prefix cache here")
        kwargs: dict[str, Any] = {"return_type": "logits", "prepend_bos": False}
        if not bool(mask.all()):
            kwargs["attention_mask"] = mask.long()
            kwargs["padding_side"] = "left"
        if start is None:
            logits = self.tl(ids, **kwargs)
        else:
            logits = self.tl(start[1], start_at_layer=start[0], tokens=ids, **kwargs)
        return logits[:, -1:] if last_only else logits

    def generate(self, ids, mask, max_new_tokens, eos_ids, pad_id, temperature=0.0):
        # Its generate() guesses padding from the pad token, so rows of one length go together, unpadded.
        lengths = mask.sum(-1)
        out = torch.full((len(ids), max_new_tokens), pad_id, dtype=torch.long, device=ids.device)
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero()[:, 0]
            new = self.tl.generate(
                ids[rows, ids.shape[1] - length :],
                max_new_tokens=max_new_tokens,
                do_sample=temperature > 0,
                temperature=temperature or 1.0,
                eos_token_id=eos_ids or None,
                stop_at_eos=bool(eos_ids),
                use_past_kv_cache=True,
                prepend_bos=False,
                return_type="tokens",
                verbose=False,
            )[:, length:]
            out[rows, : new.shape[1]] = new
        return out


def backend_of(tl: Any) -> Backend:
    """Wrap a TransformerLens model by its kind.

    Raises:
        ModelError: for anything else.
    """
    kinds = {"TransformerBridge": BridgeBackend, "HookedTransformer": HookedTransformerBackend}
    for cls in type(tl).__mro__:
        if cls.__name__ in kinds:
            return kinds[cls.__name__](tl)
    raise ModelError(
        f"a {type(tl).__name__} is neither a TransformerBridge nor a HookedTransformer; use load_model for a "
        "Hugging Face id, a folder or a .gguf file"
    )
