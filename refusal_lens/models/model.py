"""HookedChatModel: a chat model with access to its residual stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..data.prompts import PromptsLike
from ..errors import ConcurrentUseError, InterventionError, ModelError, PromptError
from ..hooks.base import Where, scopes
from ..hooks.readers import Cache, NextLogits, Reader, Rows
from ..progress import Progress, silent
from ..records.direction import Direction
from .backend import Backend, PrefixCache
from .backends import backend_of, lock_of
from .batching import length_batches
from .chat import ChatFormat, Tokens
from .generation import end_tokens, generate
from .health import check_attention, check_unhooked, check_weights, check_writes
from .identity import basis_of, check_direction, fingerprint_of
from .running import one_pass, run_readers, running
from .writing_weights import WritingWeight, check_editable


class HookedChatModel:
    """A TransformerLens model with its tokenizer's chat template (wraps either backend).

    Args:
        tl: a ``TransformerBridge`` or ``HookedTransformer``.
        tokenizer: its tokenizer; the TransformerLens model's own if None.
        name: label in results; the model's own name if None.
        system: system prompt for every conversation; None leaves it to the template.
        check: whether to verify that no hook is on the model, that its weights are finite, and that the
            residual stream is the sum of its writes.
        template: the template's settings, as in ``load_model`` (``model.chat.settings`` has those of another model).

    Raises:
        ModelError: another kind of model, no usable chat template, hooks left on it, NaN or infinite weights, or writes
            that do not sum to the stream.
    """

    def __init__(
        self,
        tl: Any,
        tokenizer: Any = None,
        name: str | None = None,
        system: str | None = None,
        check: bool = True,
        **template: Any,
    ):
        self.backend: Backend = backend_of(tl)
        self.tl = tl
        self.tokenizer = tokenizer if tokenizer is not None else tl.tokenizer
        if self.tokenizer is None:
            raise ModelError("this model has no tokenizer: pass tokenizer=...")
        self.name = name or str(getattr(tl.cfg, "model_name", "") or "model")
        self.chat = ChatFormat(self.tokenizer, system, **template)
        self.running: Tokens | None = None  # the padded batch under way, for interventions that ask for positions
        self._places: list[Where] = []
        self.n_interventions = 0  # hooks of active interventions that act on each row alone
        self.packs: bool | None = None  # whether packed prompts give the same; measured at first use
        self._lock = lock_of(tl)
        for size in ("n_layers", "n_heads", "d_model", "d_head", "d_vocab", "n_ctx"):
            setattr(self, size, getattr(self.backend, size))
        if check:
            self.check_unhooked()
            check_weights(self.backend.module, self.name)
            self.check_writes()
            check_attention(self)

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
        """Leave the TransformerLens model as it was: contexts of ``hooks`` that are still open are closed.

        Between two passes nothing else of a wrapper is on it; what TransformerLens itself stores in a pass stays.
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
        return basis_of(self.tl, self.backend)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of sizes and sampled weights (in bfloat16: a float32 and a bfloat16 copy agree)."""
        return fingerprint_of(self.backend)

    def check_direction(self, direction: Direction) -> None:
        """Refuse a direction of another model or basis with a ``DirectionError``."""
        check_direction(self, direction)

    # -- use by one thread ----------------------------------------------------------------------------------
    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep out other threads: hooks live on the modules, so threads would see each other's interventions."""
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
    def hooks(self, *interventions: Any) -> Iterator[HookedChatModel]:
        """Apply interventions inside a ``with`` block; blocks nest, and leaving restores, even after an exception.

        Args:
            interventions: ``Ablate``, ``Orthogonalize``, ... (weight edits are applied first), or plain (hook name,
                function) pairs in TransformerLens's names; functions get (tensor, hook) and return a new tensor.

        Raises:
            ModelError: a hook name that this model does not have.
            InterventionError: layers that this model does not have, or positions that no prompt had (on leaving).

        Example:
            >>> with model.hooks(("blocks.1.hook_mlp_out", lambda x, hook: 0 * x)):
            ...     logits = model.last_logits("How do I pick a lock?")
        """
        with ExitStack() as stack:
            hooked = []
            for item in interventions:
                known = isinstance(item, tuple) or hasattr(item, "hooks") or hasattr(item, "applied")
                if isinstance(item, type) or not known:
                    what = (item if isinstance(item, type) else type(item)).__name__
                    raise InterventionError(
                        f"{what} is not an intervention: give Ablate(direction), Add(direction) ... or (name, function)"
                    )
                if isinstance(item, tuple) or hasattr(item, "hooks"):
                    hooked.append(item)
                else:
                    stack.enter_context(item.applied(self))
            made = [[item] if isinstance(item, tuple) else item.hooks(self) for item in hooked]
            pairs: list[tuple[str, Callable]] = [pair for some in made for pair in some]
            n_acting = sum(len(some) for item, some in zip(hooked, made, strict=True) if getattr(item, "by_row", False))
            for name, _ in pairs:
                self._check_hook(name)
            places = list(scopes(pairs))
            stack.enter_context(self.exclusive())
            stack.enter_context(self.backend.hooks(pairs))
            self._places += [place for place in places if place.intervention.counts_positions]
            self.n_interventions += n_acting
            try:
                yield self
            finally:
                self.n_interventions -= n_acting
                self._places = [place for place in self._places if place not in places]
        for place in places:
            place.check()

    @property
    def counts_positions(self) -> bool:
        """Whether an active intervention acts at some positions only, so that passes must know their prompts."""
        return bool(self._places)

    def _check_hook(self, name: str) -> None:
        if not self.backend.has_hook(name):
            close = [n for n in sorted(self.backend.hook_names) if n.split(".")[-1] == name.split(".")[-1]]
            hint = f"; did you mean {close[0]}?" if close else "; see model.tl.hook_dict"
            raise ModelError(f"{self.name} has no hook point {name!r}{hint}")

    # -- tokens ---------------------------------------------------------------------------------------------
    def tokenize(self, prompts: PromptsLike, suffixes: str | Sequence[str] | None = None) -> Tokens:
        """Tokenize ``prompts``: chat-formatted, left-padded, with their spans, on the model's device."""
        tokens = self.chat.tokenize(prompts, suffixes)
        longest = tokens.ids.shape[1]
        if self.n_ctx and longest > self.n_ctx:
            raise PromptError(f"a prompt has {longest} tokens and {self.name} takes {self.n_ctx}: shorten it")
        if (highest := int(tokens.ids.max())) >= self.d_vocab:
            raise ModelError(
                f"the tokenizer gives token {highest} and {self.name} has {self.d_vocab} embeddings: it is another "
                "model's tokenizer"
            )
        return tokens.to(self.device)

    def batches(
        self, prompts: PromptsLike | Tokens, suffixes: str | Sequence[str] | None = None, max_tokens: int = 2048
    ) -> Iterator[Tokens]:
        """Prompts in batches of similar length; ``Tokens.indices`` says where each row came from.

        Args:
            prompts: requests, or tokens from ``tokenize``.
            suffixes: one per prompt, or None.
            max_tokens: the most padded tokens per batch (always at least one prompt).
        """
        tokens = prompts if isinstance(prompts, Tokens) else self.tokenize(prompts, suffixes)
        return length_batches(tokens, max_tokens)

    # -- running --------------------------------------------------------------------------------------------
    @torch.inference_mode()
    def logits(
        self,
        tokens: Tokens,
        last_only: int = True,
        start: tuple[int, Tensor] | None = None,
        prefix: PrefixCache | None = None,
        prefix_mask: Bool[Tensor, "batch prefix"] | None = None,
    ) -> Float[Tensor, "batch kept vocab"]:
        """Compute the logits of a batch, at the last position, the last few (a number) or all of them (False).

        Args:
            tokens: from ``tokenize`` or ``batches``.
            start: (layer, its resid_pre): restart there instead of at the embedding.
            prefix: keys and values from ``prefix_cache``; then ``tokens`` are without the prefix.
            prefix_mask: True at real tokens of the prefix, where its rows have padding.
        """
        with self.exclusive(), running(self, tokens):
            return self.backend.logits(tokens.ids, tokens.mask, last_only, prefix, start, prefix_mask)

    @torch.inference_mode()
    def run(
        self,
        prompts: PromptsLike | Tokens,
        suffixes: str | Sequence[str] | None = None,
        *,
        read: Reader | Sequence[Reader],
        under: Any = (),
        pack: bool = False,
        engine: Any = None,
        progress: Progress = silent,
        on_batch: Callable[[int], None] | None = None,
    ) -> Rows:
        """Read whatever ``read`` names, all of it in one pass per batch of prompts.

        Layers after the last hook point that is read are not run, unless a reader needs the logits.

        Args:
            prompts: requests, in any form that ``data.prompts.as_prompts`` takes, or tokens from ``tokenize``.
            suffixes: one per prompt (with its leading space), or None.
            read: readers (``refusal_lens.hooks``); memory is one batch and what they keep.
            under: interventions active during the run, in addition to those of ``with model.hooks(...)``.
            pack: run several prompts per row, where all readers and the model allow it: faster, equal up to rounding.
            engine: spread the prompts over its workers, 64 per item; None runs them here in batches of similar length.
            progress: shows the progress.
            on_batch: called with the number of prompts just done.

        Returns:
            ``rows[reader]``: what each reader found, in prompt order and on the CPU.

        Raises:
            ModelError: a hook point that did not fire.
            DirectionError: a direction of another model.

        Example:
            >>> from refusal_lens.hooks import NextLogits
            >>> logits = NextLogits()
            >>> model.run("How do I bake bread?", read=logits)[logits].shape[0]
            1
        """
        return run_readers(self, prompts, suffixes, read, under, pack, engine, progress, on_batch)

    def last_logits(self, prompts: PromptsLike | Tokens, suffixes: Any = None) -> Tensor:
        """Next-token logits after each prompt, [prompt, vocab], in the order given."""
        (found,) = self.run(prompts, suffixes, read=NextLogits())
        return found.to(self.device)

    @torch.inference_mode()
    def cache(
        self,
        tokens: Tokens | Sequence[str],
        names: str | Iterable[str],
        positions: slice | None = None,
        prefix: PrefixCache | None = None,
        prefix_mask: Bool[Tensor, "batch prefix"] | None = None,
        start: tuple[int, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Read one batch's activations at the named hook points, on their device, under the active interventions.

        Layers after the last named one are not run. (``run`` with a ``Cache`` takes any number of prompts.)

        Args:
            tokens: one batch (or prompts, tokenized as one batch).
            names: TransformerLens's names, e.g. ``blocks.3.hook_resid_pre``.
            positions: keep these positions only (axis 1, e.g. ``slice(-5, None)``), so that memory stays small.
            prefix, prefix_mask, start: as in ``logits``; activations are of ``tokens`` alone.
        """
        batch = tokens if isinstance(tokens, Tokens) else self.tokenize(tokens)
        reader = Cache([names] if isinstance(names, str) else list(dict.fromkeys(names)))
        reader.where = positions
        run = partial(self.backend.logits, batch.ids, batch.mask, prefix=prefix, start=start, prefix_mask=prefix_mask)
        with running(self, batch):
            one_pass(self, reader.hooks(self, batch), run, logits=False)
        return {name: reader.kept[name] for name in reader.names}

    @torch.inference_mode()
    def prefix_cache(
        self, ids: Int[Tensor, "*batch pos"], mask: Bool[Tensor, "batch pos"] | None = None
    ) -> PrefixCache:
        """Keys and values of a shared prefix, or of one prefix per row, under the active interventions."""
        with self.exclusive():
            return self.backend.prefix_cache(ids, mask)

    @torch.inference_mode()
    def generate(
        self,
        prompts: PromptsLike | Tokens,
        max_new_tokens: int = 64,
        suffixes: str | Sequence[str] | None = None,
        on_batch: Callable[[int], None] | None = None,
        batch_size: int = 32,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Any:
        """Reply with the KV cache, greedy by default; interventions act in prefill and in every decoding step.

        Args:
            prompts: requests (the chat template is applied) or tokens.
            max_new_tokens: length limit; a reply ends earlier at the model's end token.
            suffixes: one per prompt, or None.
            on_batch: called with the number of replies done after each batch (for progress bars).
            batch_size: prompts decoded together.
            temperature: above 0, sample from softmax(logits / temperature).
            seed: of the sampling; the caller's random state is left alone.

        Returns:
            One reply for a string, a list of replies for anything else. A thought before the answer stays in the reply
            (``model.chat.split`` separates them).
        """
        tokens = prompts if isinstance(prompts, Tokens) else self.tokenize(prompts, suffixes)
        replies = generate(self, tokens, max_new_tokens, on_batch, batch_size, temperature, seed)
        return replies[0] if isinstance(prompts, str) else replies

    @cached_property
    def eos_ids(self) -> list[int]:
        """Tokens that end a reply: the tokenizer's, the generation config's, and the template's end of a turn."""
        return end_tokens(self.tokenizer, self.backend, self.turn_end[0])

    @cached_property
    def turn_end(self) -> tuple[set[int], str]:
        """What ends the model's turn in the chat template: a token, or text where no token of its own does."""
        return self.chat.template.turn_end()

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
        """Refuse a model that someone else's hooks change with a ``ModelError`` that names the hook points."""
        check_unhooked(self.tl, self.name)

    def check_writes(self) -> float:
        """Verify that resid_post = resid_pre + attn_out + mlp_out at every layer; the largest relative error."""
        return check_writes(self)
