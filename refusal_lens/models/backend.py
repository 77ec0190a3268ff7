"""What the wrapper needs from a TransformerLens model; all differences between the two kinds are in its subclasses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from ..errors import ModelError
from ..hooks.readout import NormWeights
from .counting import count_pass
from .writing_weights import WritingWeight, not_found

HookFn = Callable[..., Any]
PrefixCache = list[tuple[Tensor, Tensor]]


def optional_weight(module: Any, name: str) -> Tensor | None:
    """A weight that not every checkpoint has: bridges raise or give None where there is none."""
    try:
        value = getattr(module, name, None)
    except (AttributeError, NotImplementedError, ValueError):
        value = None
    return value.detach() if isinstance(value, Tensor) else None


class Backend:
    """A TransformerLens model as the wrapper uses it. Between two passes the model is as its owner left it.

    Attributes:
        tl: the TransformerLens model.
        module: the module that holds its weights, under the checkpoint's own names where it has them.
        kind: name of the TransformerLens class, for results.
        supports_prefix: whether keys and values of a prefix can be computed once and shared.
    """

    kind = ""
    supports_prefix = False

    def __init__(self, tl: Any):
        self.tl = tl
        self.module: Any = tl
        self.blocks = list(tl.blocks)
        cfg = tl.cfg
        self.n_layers, self.n_heads = int(cfg.n_layers), int(cfg.n_heads)
        self.d_model = int(cfg.d_model)
        self.d_vocab = int(self.unembed_weight().shape[-1])
        self.n_ctx = int(getattr(cfg, "n_ctx", None) or 0)
        self.hook_names = frozenset(self._hook_names())
        self.d_head = self._head_width()
        self._modules = tuple(tl.modules())
        self._counted = False  # a pass is under way
        self._open: WeakSet[AbstractContextManager] = WeakSet()  # weak: a forgotten one is left when it is collected

    def _head_width(self) -> int:
        """Width of what a head gives: of latent attention (DeepSeek) another than that of its queries."""
        try:
            return int(self.some_heads(0).shape[1])
        except (ModelError, AttributeError):  # packed weights, or no attention there: who needs them says so
            return int(self.tl.cfg.d_head)

    # -- hooks ----------------------------------------------------------------------------------------------
    def _hook_names(self) -> list[str]:
        return list(self.tl.hook_dict)

    def has_hook(self, name: str) -> bool:
        """Whether ``name`` is a hook point of this model (aliases included)."""
        return name in self.hook_names

    def hooks(self, hooks: Sequence[tuple[str, HookFn]]) -> AbstractContextManager:
        """A context in which ``hooks`` are on the model; contexts may be left in any order."""
        context = self._hooks(hooks)
        self._open.add(context)
        return context

    def _hooks(self, hooks: Sequence[tuple[str, HookFn]]) -> AbstractContextManager:
        raise NotImplementedError

    def close(self) -> None:
        """Leave the contexts that are still open."""
        for context in list(self._open):
            context.__exit__(None, None, None)
        self._open.clear()

    @contextmanager
    def _passing(self) -> Iterator[None]:
        """What holds during a pass only: it is counted, and no module is in training mode, which would drop activations
        at random."""
        counter = None if self._counted else self.module.register_forward_pre_hook(count_pass, with_kwargs=True)
        self._counted = True
        training = [module for module in self._modules if module.training]
        for module in training:
            module.__dict__["training"] = False  # not setattr, which a bridge's parts hand on to what they wrap
        try:
            yield
        finally:
            if counter is not None:
                counter.remove()
                self._counted = False
            for module in training:
                module.__dict__["training"] = True

    # -- running --------------------------------------------------------------------------------------------
    def logits(
        self,
        ids: Int[Tensor, "batch pos"],
        mask: Bool[Tensor, "batch pos"],
        last_only: int = True,
        prefix: PrefixCache | None = None,
        start: tuple[int, Float[Tensor, "batch pos d_model"]] | None = None,
        prefix_mask: Bool[Tensor, "batch prefix"] | None = None,
    ) -> Float[Tensor, "batch kept vocab"]:
        """Logits of the last position, of some, or of all; arguments as in ``HookedChatModel.logits``: ``ids`` are
        left-padded and without the prefix's, which is common to all rows or a row each."""
        raise NotImplementedError

    def own_attention(self) -> AbstractContextManager:
        """Attention as the checkpoint's own code computes it, without hook points, where both exist."""
        return nullcontext()

    def same_attention(self, same: bool) -> None:
        """Say whether that attention gives the same bits, and so may run where nothing inside is hooked."""

    def prefix_cache(
        self, ids: Int[Tensor, "*batch pos"], mask: Bool[Tensor, "batch pos"] | None = None
    ) -> PrefixCache:
        """Keys and values of ``ids`` at every layer, for ``logits(prefix=...)``; ``mask`` where rows have padding."""
        raise ModelError(f"{self.kind} has no prefix cache here; load a TransformerBridge (transformer-lens 4.3)")

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
        """Logits at (``row``, ``end``) of rows that hold several prompts, in ``copies``: the batch is all rows of the
        first one, then of the second ... The tensors are those of a ``packing.Pack``, ``start`` is of the batch."""
        raise ModelError(f"{self.kind} runs no packed prompts here; load a TransformerBridge (transformer-lens 4.3)")

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
        prefix: PrefixCache | None = None,
    ) -> Int[Tensor, "batch new"]:
        """New tokens with the KV cache (greedy at temperature 0), padded with ``pad_id`` after an end token.

        ``prefix`` has keys and values of the batch's first columns, a row each, which then are not run again.
        """
        raise NotImplementedError

    def end_tokens(self) -> set[int]:
        """Tokens that end a reply by the checkpoint's generation config."""
        return set()

    def generation_requests(self) -> dict[str, Any]:
        """What the checkpoint's generation config asks for besides end tokens: not used, for greedy is greedy."""
        return {}

    # -- weights --------------------------------------------------------------------------------------------
    def part(self, layer: int, part: str) -> tuple[str, Any]:
        """Name and module of a layer's "attn" or "mlp", which not every TransformerLens block names so; or None."""
        block = self.blocks[layer]
        name = getattr(block, f"scaled_{part}_submodule", None) or part
        return f"blocks.{layer}.{name}", getattr(block, name, None)

    def writing_weights(self, name: str) -> list[WritingWeight]:
        """Every parameter that writes to the residual stream; a ``ModelError`` for a layer without known ones."""
        found = self._embedding_weights()
        for layer in range(self.n_layers):
            for part in ("attn", "mlp"):
                where, module = self.part(layer, part)
                if module is None:
                    continue
                own = self._output_weights(where, part, module)
                if not own:
                    raise not_found(name, where, module)
                found += own
        return found

    def _embedding_weights(self) -> list[WritingWeight]:
        raise NotImplementedError

    def _output_weights(self, where: str, part: str, module: Any) -> list[WritingWeight]:
        raise NotImplementedError

    def processed(self) -> bool:
        """Whether TransformerLens processed the weights (folded norms, centred writes), as far as it says so."""
        return False

    def unembed_weight(self) -> Float[Tensor, "d_model d_vocab"]:
        """W_U."""
        return self.tl.W_U

    def embed_weight(self) -> Float[Tensor, "d_vocab d_model"]:
        """W_E."""
        return self.tl.W_E

    def output_weight(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """W_O of one layer, by query head."""
        return self.blocks[layer].attn.W_O

    def scoring(self, layer: int) -> tuple[float, float, Float[Tensor, "head"] | None]:
        """What one layer multiplies q · k by, its cap of scores (0 for none), and its sinks' logits or None."""
        raise ModelError(f"{self.kind} does not say how it scores; load a TransformerBridge (transformer-lens 4.3)")

    def some_heads(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """W_O of ``layer``, or of the next one that has heads."""
        for other in range(layer, self.n_layers):
            try:
                return self.output_weight(other)
            except ModelError:
                continue
        return self.output_weight(layer)

    def input_weight(
        self, layer: int, part: str
    ) -> tuple[Float[Tensor, "head d_model d"], Float[Tensor, "head d"] | None]:
        """Weight and bias of the queries ("Q") or keys ("K") of one layer, by query or key head."""
        module = self.part(layer, "attn")[1]
        weight = optional_weight(module, f"W_{part}")
        if weight is None or weight.ndim != 3:
            raise ModelError(f"layer {layer}: W_{part} is not available by head")
        return weight, optional_weight(module, f"b_{part}")

    def attn_bias(self, layer: int) -> Float[Tensor, "d_model"] | None:
        """b_O of one layer, or None where the checkpoint has none."""
        return optional_weight(self.part(layer, "attn")[1], "b_O")

    def neuron_weight(self, layer: int) -> Float[Tensor, "d_mlp d_model"] | None:
        """W_out of one layer's MLP; None for a mixture of experts, which has one per expert."""
        return optional_weight(self.part(layer, "mlp")[1], "W_out")

    def mlp_bias(self, layer: int) -> Float[Tensor, "d_model"] | None:
        """b_out of one layer's MLP, or None."""
        return optional_weight(self.part(layer, "mlp")[1], "b_out")

    def unembed_bias(self) -> Float[Tensor, "d_vocab"] | None:
        """b_U, or None."""
        return optional_weight(self.tl.unembed, "b_U")

    @property
    def write_scale(self) -> float:
        """What every sublayer's output is multiplied by before it is added to the stream (Granite)."""
        return 1.0

    @property
    def logit_scale(self) -> float:
        """What the unembedding's output is multiplied by, before a cap (Granite, Cohere)."""
        return 1.0

    def logit_cap(self) -> float:
        """The cap c of logits c * tanh(logits / c); 0 for none."""
        cap = getattr(self.tl.cfg, "output_logits_soft_cap", None)
        return float(cap) if cap and cap > 0 else 0.0

    def final_norm(self) -> NormWeights:
        """The norm before the unembedding."""
        return self._norm(self.tl.ln_final, "ln_final")

    def post_norm(self, layer: int, part: str) -> NormWeights | None:
        """The norm between what "attn" or "mlp" gives and the residual stream (Gemma 2 and 3, OLMo 2), or None."""
        name = {"attn": "ln1_post", "mlp": "ln2_post"}[part]
        module = getattr(self.blocks[layer], name, None)
        return None if module is None else self._norm(module, f"blocks.{layer}.{name}")

    def input_norm(self, layer: int) -> NormWeights | None:
        """The norm between the stream and attention's input; None where there is none (OLMo 2)."""
        module = getattr(self.blocks[layer], "ln1", None)
        return None if module is None else self._norm(module, f"blocks.{layer}.ln1")

    def head_norm(self, layer: int, part: str) -> NormWeights:
        """The norm of queries ("q") or keys ("k"); its weight is by entry, by head, or by both in one row."""
        name, module = self.part(layer, "attn")
        norm = getattr(module, f"{part}_norm")
        if optional_weight(norm, "weight") is None or not hasattr(norm, "uses_rms_norm"):
            raise ModelError(f"layer {layer}: the weight of its {part}_norm is not available")
        return self._norm(norm, f"{name}.{part}_norm")

    def norm_after_writes(self) -> str:
        """Name of the first norm between the embedding (BLOOM) or a sublayer and the stream; "" where there is none."""
        if "embed_ln" in dict(self.tl.named_children()):
            return "embed_ln"
        norms = (self.post_norm(n, part) for n in range(self.n_layers) for part in ("attn", "mlp"))
        return next((norm.site for norm in norms if norm), "")

    def _norm(self, module: Any, site: str) -> NormWeights:
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Device of the embedding: where token ids go."""
        return self.embed_weight().device

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the weights."""
        return self.embed_weight().dtype


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
    cache where it finds none: replies then forget their prompt, and nothing says so. The checkpoint's own attention,
    where it runs instead, takes what transformers hands down.
    """
    if "cache" in kwargs and "forward" not in module.__dict__ and kwargs.get("past_key_values") is None:
        kwargs = {name: x for name, x in kwargs.items() if name != "cache"} | {"past_key_values": kwargs["cache"]}
    return args, kwargs
