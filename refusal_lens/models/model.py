"""HookedChatModel: a chat model with its residual stream in reach."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import ConcurrentUseError, DirectionError, ModelError, PromptError
from ..hooks.base import Intervention
from ..records.direction import Direction
from .backend import Backend, PrefixCache
from .batching import PADDING_TOKENS, take
from .bridge import BridgeBackend
from .chat import ChatFormat, Tokens
from .health import check_activations, check_unhooked, check_weights
from .hooked_transformer import HookedTransformerBackend
from .writing_weights import WritingWeight, check_editable

# resid_post against the sum of the writes, relative to the largest value: rounding of a few additions.
SUM_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}


# One per TransformerLens model, however many wrappers there are around it: hooks live on its modules.
_LOCKS: WeakKeyDictionary[Any, threading.RLock] = WeakKeyDictionary()


class _Stop(Exception):
    """Ends a forward pass whose remaining layers nobody reads."""


class HookedChatModel:
    """A TransformerLens model with its tokenizer's chat template (wraps either backend).

    Args:
        tl: a ``TransformerBridge`` or ``HookedTransformer``.
        tokenizer: its tokenizer; the TransformerLens model's own if None.
        name: label in results; the model's own name if None.
        system: system prompt for every conversation; None leaves it to the template.
        check: whether to verify at once that no hook is on the model, that its weights are finite, and that the
            residual stream is the sum of its writes.

    Raises:
        ModelError: not such a model, no usable chat template, hooks left on it, NaN or infinite weights, or writes
            that do not sum to the stream.
    """

    def __init__(
        self,
        tl: Any,
        tokenizer: Any = None,
        name: str | None = None,
        system: str | None = None,
        check: bool = True,
    ):
        self.backend: Backend = backend_of(tl)
        self.tl = tl
        self.tokenizer = tokenizer if tokenizer is not None else tl.tokenizer
        if self.tokenizer is None:
            raise ModelError("this model has no tokenizer: pass tokenizer=...")
        self.name = name or str(getattr(tl.cfg, "model_name", "") or "model")
        self.chat = ChatFormat(self.tokenizer, system)
        self._lock = _LOCKS.setdefault(tl, threading.RLock())
        for size in ("n_layers", "n_heads", "d_model", "d_head", "d_vocab", "n_ctx"):
            setattr(self, size, getattr(self.backend, size))
        if check:
            self.check_unhooked()
            check_weights(self.backend.module, self.name)
            self.check_writes()

    n_layers: int
    n_heads: int
    d_model: int
    d_head: int
    d_vocab: int
    n_ctx: int

    def __repr__(self) -> str:
        return (
            f"HookedChatModel({self.name!r}, {self.backend.kind}, n_layers={self.n_layers}, d_model={self.d_model}, "
            f"n_heads={self.n_heads}, {str(self.dtype).removeprefix('torch.')} on {self.device}, basis={self.basis!r})"
        )

    def close(self) -> None:
        """Leave the TransformerLens model as it was: contexts of ``hooks`` that are still open are left.

        Between two passes nothing else of a wrapper is on it; what TransformerLens notes in its passes stays.
        """
        self.backend.close()

    def __enter__(self) -> HookedChatModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- identity -------------------------------------------------------------------------------------------
    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return self.backend.device

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the weights and of the residual stream."""
        return self.backend.dtype

    @cached_property
    def basis(self) -> str:
        """Basis of the residual stream: "raw" is the model's own; processing that rotates or centres it gives
        another name, and directions do not carry over."""
        cfg = self.tl.cfg
        centred = self.backend.processed() or self._writes_are_centred()
        norm = str(getattr(cfg, "normalization_type", "") or "")
        # Centring changes nothing that an RMS-norm model's residual stream holds by default.
        return "centred" if centred and not norm.upper().startswith("RMS") else "raw"

    def _writes_are_centred(self) -> bool:
        rows = self.backend.embed_weight()[:256].float()
        return bool(rows.mean(-1).abs().max() < 1e-5 * rows.abs().max())

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of sizes and sampled weights (in bfloat16, so that dtype does not matter)."""
        digest = hashlib.sha256(repr((self.n_layers, self.n_heads, self.d_model, self.d_vocab)).encode())
        embed, middle = self.backend.embed_weight(), self.backend.output_weight(self.n_layers // 2)
        for sample in (embed[:: max(1, len(embed) // 64)], middle[0], middle[-1]):
            digest.update(sample.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
        return digest.hexdigest()[:16]

    def check_direction(self, direction: Direction) -> None:
        """Refuse a direction of another model or basis.

        Raises:
            DirectionError: with both identities in the message.
        """
        if direction.unit.shape != (self.d_model,):
            raise DirectionError(
                f"the direction has {direction.unit.shape[-1]} entries and {self.name} has d_model {self.d_model}: "
                "it belongs to another model; extract one from this model"
            )
        if direction.model and direction.model != self.fingerprint:
            raise DirectionError(
                f"the direction belongs to the model with fingerprint {direction.model}, not to {self.name} "
                f"({self.fingerprint}); extract one from this model, or set its model to '' to transfer it on purpose"
            )
        if direction.basis != self.basis:
            raise DirectionError(
                f"the direction lives in the basis {direction.basis!r} and {self.name} is loaded in {self.basis!r}; "
                "load the model without weight processing (no folding, no centring)"
            )
        if not 0 <= direction.layer < self.n_layers:
            raise DirectionError(f"layer {direction.layer} does not exist in {self.name} (n_layers {self.n_layers})")

    # -- use by one thread ----------------------------------------------------------------------------------
    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hooks live on the modules, so two threads would see each other's interventions."""
        if not self._lock.acquire(blocking=False):
            raise ConcurrentUseError(
                f"{self.name} is in use by another thread, whose hooks would change this thread's results; "
                "load a second copy, or wait for the other thread"
            )
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def hooks(self, *interventions: Intervention | tuple[str, Callable]) -> Iterator[HookedChatModel]:
        """Interventions active inside the ``with``; contexts nest, and leaving restores, also after an exception.

        Args:
            interventions: ``Ablate``, ``Add``, ... or plain (hook name, function) pairs in TransformerLens's
                names; functions get (tensor, hook) and return a new tensor.

        Raises:
            ModelError: for a hook name that this model does not have.
        """
        pairs: list[tuple[str, Callable]] = []
        for item in interventions:
            pairs += [item] if isinstance(item, tuple) else item.hooks(self)
        for name, _ in pairs:
            self._check_hook(name)
        with self._exclusive(), self.backend.hooks(pairs):
            yield self

    def _check_hook(self, name: str) -> None:
        if not self.backend.has_hook(name):
            close = [n for n in sorted(self.backend.hook_names) if n.split(".")[-1] == name.split(".")[-1]]
            hint = f"; did you mean {close[0]}?" if close else "; see model.tl.hook_dict"
            raise ModelError(f"{self.name} has no hook point {name!r}{hint}")

    # -- tokens ---------------------------------------------------------------------------------------------
    def tokenize(self, prompts: Sequence[str], suffixes: Sequence[str] | None = None) -> Tokens:
        """Chat-formatted, left-padded tokens of ``prompts`` with their spans, on the model's device."""
        tokens = self.chat.tokenize(prompts, suffixes)
        longest = tokens.ids.shape[1]
        if self.n_ctx and longest > self.n_ctx:
            raise PromptError(f"a prompt has {longest} tokens and {self.name} takes {self.n_ctx}: shorten it")
        if (highest := int(tokens.ids.max())) >= self.d_vocab:
            raise ModelError(
                f"the tokenizer gives token {highest} and {self.name} has {self.d_vocab} embeddings: it is another "
                "model's tokenizer"
            )
        return Tokens(tokens.ids.to(self.device), tokens.mask.to(self.device), tokens.spans, tokens.indices)

    def batches(
        self, prompts: Sequence[str] | Tokens, suffixes: Sequence[str] | None = None, max_tokens: int = 2048
    ) -> Iterator[Tokens]:
        """Prompts in batches of similar length; ``Tokens.indices`` says where each row came from.

        On a CPU a batch ends before its padding reaches ``PADDING_TOKENS``, too.

        Args:
            prompts: requests, or tokens from ``tokenize``.
            suffixes: one per prompt, or None.
            max_tokens: padded tokens a batch at most (always at least one prompt).
        """
        tokens = prompts if isinstance(prompts, Tokens) else self.tokenize(prompts, suffixes)
        lengths = tokens.lengths.tolist()
        order = sorted(range(len(tokens)), key=lambda i: lengths[i])
        room = PADDING_TOKENS if self.device.type == "cpu" else math.inf
        start = 0
        while start < len(order):
            stop, real = start + 1, lengths[order[start]]
            while stop < len(order):
                width, rows = lengths[order[stop]], stop - start
                if (rows + 1) * width > max_tokens or rows * width - real > room:
                    break
                stop, real = stop + 1, real + width
            yield take(tokens, order[start:stop])
            start = stop

    # -- running --------------------------------------------------------------------------------------------
    @torch.inference_mode()
    def logits(
        self,
        tokens: Tokens,
        last_only: bool = True,
        start: tuple[int, Tensor] | None = None,
        prefix: PrefixCache | None = None,
        prefix_mask: Bool[Tensor, "batch prefix"] | None = None,
    ) -> Float[Tensor, "batch kept vocab"]:
        """Logits of a batch, of the last position only unless asked for all ([batch, pos, vocab]).

        Args:
            tokens: from ``tokenize`` or ``batches``.
            start: (layer, its resid_pre): restart there instead of at the embedding.
            prefix: keys and values from ``prefix_cache``; then ``tokens`` are without the prefix.
            prefix_mask: True at real tokens of the prefix, where its rows have padding.
        """
        with self._exclusive():
            return self.backend.logits(tokens.ids, tokens.mask, last_only, prefix, start, prefix_mask)

    @torch.inference_mode()
    def last_logits(self, prompts: Sequence[str] | Tokens, suffixes: Sequence[str] | None = None) -> Tensor:
        """Next-token logits after each prompt, [prompt, vocab], in the order given."""
        rows: dict[int, Tensor] = {}
        for batch in self.batches(prompts, suffixes):
            for index, row in zip(batch.indices, self.logits(batch)[:, -1], strict=True):
                rows[index] = row
        return torch.stack([rows[i] for i in range(len(rows))])

    @torch.inference_mode()
    def cache(
        self,
        tokens: Tokens | Sequence[str],
        names: Iterable[str],
        positions: slice | None = None,
        prefix: PrefixCache | None = None,
        prefix_mask: Bool[Tensor, "batch prefix"] | None = None,
    ) -> dict[str, Tensor]:
        """Activations at the named hook points only, under whatever interventions are active.

        Layers after the last named one are not run.

        Args:
            tokens: one batch (or prompts, tokenized as one batch).
            names: TransformerLens's names, e.g. ``blocks.3.hook_resid_pre``.
            positions: keep these positions only (axis 1, e.g. ``slice(-5, None)``), so that memory stays small.
            prefix, prefix_mask: as in ``logits``; activations are of ``tokens`` alone.
        """
        batch = tokens if isinstance(tokens, Tokens) else self.tokenize(tokens)
        wanted = list(dict.fromkeys(names))
        stored: dict[str, Tensor] = {}

        def keep(name: str) -> Callable:
            def hook_fn(x: Tensor, hook: Any) -> None:
                stored[name] = (x if positions is None else x[:, positions]).clone()
                if len(stored) == len(wanted) and stops_early:
                    raise _Stop

            return hook_fn

        stops_early = all(name.startswith("blocks.") for name in wanted)
        try:
            with self.hooks(*[(name, keep(name)) for name in wanted]):
                self.backend.logits(batch.ids, batch.mask, prefix=prefix, prefix_mask=prefix_mask)
        except _Stop:
            pass
        missing = [name for name in wanted if name not in stored]
        if missing:
            raise ModelError(f"the hook point {missing[0]!r} exists but did not fire in {self.name}")
        return {name: stored[name] for name in wanted}

    @torch.inference_mode()
    def prefix_cache(
        self,
        ids: Int[Tensor, "*batch pos"],
        mask: Bool[Tensor, "batch pos"] | None = None,
    ) -> PrefixCache:
        """Keys and values of a shared prefix, or of one prefix a row, under the active interventions."""
        with self._exclusive():
            return self.backend.prefix_cache(ids, mask)

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[str] | Tokens,
        max_new_tokens: int = 64,
        suffixes: Sequence[str] | None = None,
        on_batch: Callable[[int], None] | None = None,
        batch_size: int = 32,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """Replies with the KV cache, greedy by default; active interventions act in prefill and in every decoding
        step.

        Args:
            prompts: requests (the chat template is applied) or tokens.
            max_new_tokens: length limit; a reply ends earlier at the model's end token.
            suffixes: one per prompt, or None.
            on_batch: called with the number of replies done after each batch (for progress bars).
            batch_size: prompts decoded together.
            temperature: above 0, sample from softmax(logits / temperature).
            seed: of the sampling; the caller's random state is left alone.
        """
        tokens = prompts if isinstance(prompts, Tokens) else self.tokenize(prompts, suffixes)
        if self.n_ctx and tokens.ids.shape[1] + max_new_tokens > self.n_ctx:
            raise PromptError(
                f"{tokens.ids.shape[1]} prompt tokens and {max_new_tokens} new ones exceed the context of "
                f"{self.n_ctx}: ask for fewer new tokens"
            )
        order = sorted(range(len(tokens)), key=lambda i: int(tokens.lengths[i]))
        replies: dict[int, str] = {}
        with self._exclusive(), torch.random.fork_rng(enabled=temperature > 0):
            if temperature > 0:
                torch.manual_seed(seed)
            for begin in range(0, len(order), batch_size):
                batch = take(tokens, order[begin : begin + batch_size])
                new = self.backend.generate(
                    batch.ids, batch.mask, max_new_tokens, self.eos_ids, self.chat.pad_id, temperature
                )
                for index, row in zip(batch.indices, new, strict=True):
                    replies[index] = self.tokenizer.decode(self._until_end(row), skip_special_tokens=True)
                if on_batch:
                    on_batch(len(batch))
        return [replies[i] for i in range(len(replies))]

    def _until_end(self, row: Tensor) -> list[int]:
        ids = row.tolist()
        ends = [i for i, token in enumerate(ids) if token in self.eos_ids]
        return ids[: ends[0]] if ends else ids

    @cached_property
    def eos_ids(self) -> list[int]:
        """Tokens that end a reply: the tokenizer's and the checkpoint's generation config's."""
        ids = {self.tokenizer.eos_token_id}
        return sorted(int(i) for i in ids | self.backend.end_tokens() if i is not None)

    def writing_weights(self) -> list[WritingWeight]:
        """Every parameter that writes to the residual stream.

        Raises:
            ModelError: a layer whose output weights are not found, or weights that are quantized or offloaded.
        """
        # Who asks for them may edit them, and both are cached at first use: they must be those of the whole weights.
        _ = self.fingerprint, self.basis
        found = self.backend.writing_weights(self.name)
        check_editable(found, self.name)
        return found

    # -- the check at load ----------------------------------------------------------------------------------
    def check_unhooked(self) -> None:
        """Refuse a model that someone else's hooks change.

        Raises:
            ModelError: naming the hook points.
        """
        check_unhooked(self.tl, self.name)

    def check_writes(self) -> float:
        """Verify that resid_post = resid_pre + attn_out + mlp_out at every layer, and that layers join up.

        Returns:
            The largest relative error.

        Raises:
            ModelError: naming the layer and hook that does not fit.
        """
        tokens = self.tokenize(["Hello there, how are you?"])
        # A few tokens cost what reading the weights costs; the first one's activations are the largest.
        tokens = Tokens(tokens.ids[:, :4], tokens.mask[:, :4], tokens.spans, tokens.indices)
        sites = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")
        names = [f"blocks.{layer}.{site}" for layer in range(self.n_layers) for site in sites]
        for name in names:
            if not self.backend.has_hook(name):
                raise ModelError(
                    f"{self.name} has no hook point {name!r}, so its residual stream can't be followed; "
                    "this architecture is not supported"
                )
        cached = self.cache(tokens, names)
        check_activations(self.name, cached)
        tolerance, worst, previous = SUM_TOLERANCE.get(self.dtype, 1e-2), 0.0, None
        for layer in range(self.n_layers):
            pre, attn, mlp, post = (cached[f"blocks.{layer}.{site}"].double() for site in sites)
            error = float((pre + attn + mlp - post).abs().max() / post.abs().max())
            if not error <= tolerance:  # also true for NaN
                raise ModelError(
                    f"{self.name}, layer {layer}: resid_pre + attn_out + mlp_out misses resid_post by {error:.2g} of "
                    f"its largest value (limit {tolerance:g} in {self.dtype}): some write to the residual stream is "
                    "not hooked"
                )
            worst = max(worst, error)
            if previous is not None and not torch.equal(previous, pre):
                gap = float((previous - pre).abs().max() / pre.abs().max())
                if not gap <= tolerance:
                    raise ModelError(f"{self.name}: resid_post of layer {layer - 1} is not resid_pre of layer {layer}")
            previous = post
        return worst


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
