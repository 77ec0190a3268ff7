"""Two runs of the same prompts, aligned at their ends, of which one is run again from a layer and a position on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import PromptError
from ..models.batching import numbered
from ..models.chat import Tokens
from ..models.model import HookedChatModel
from ..models.running import running
from ..records.labels import index_of
from ..tensors import wide
from .controls import check_suffix
from .grid_records import WAYS


class Restarted:
    """One batch of a run, whose passes begin at a layer and run the last positions only.

    Nothing before the first position that is changed can change, so it stays as keys and values, where the model's
    attention allows it (``backend.supports_prefix``); elsewhere every pass runs all positions.

    Args:
        n_last: positions at the end that are changed at all.
    """

    def __init__(self, model: HookedChatModel, tokens: Tokens, n_last: int):
        self.model, self.tokens, self.n_last = model, numbered(tokens), n_last
        self.short = model.backend.supports_prefix

    @cached_property
    def resid(self) -> list[Float[Tensor, "prompt pos d_model"]]:
        """resid_pre of every layer, at the positions that passes run."""
        names = [f"blocks.{layer}.hook_resid_pre" for layer in range(self.model.n_layers)]
        return list(self.read(names, self.n_last if self.short else None).values())

    def read(self, names: Sequence[str], n_last: int | None) -> dict[str, Tensor]:
        """Activations of the run as it is, at the last positions (all if None)."""
        return self.model.cache(self.tokens, names, None if n_last is None else slice(-n_last, None))

    @cached_property
    def _prefix(self) -> list[tuple[Tensor, Tensor]]:
        return self.model.prefix_cache(self.tokens.ids, self.tokens.mask)

    def rows(self, tail: int, copies: int) -> tuple[Tokens, dict[str, Any]]:
        """The last ``tail`` tokens ``copies`` times, one copy after another, and what stands before them."""
        whole = self.tokens
        if not self.short:
            tail = whole.ids.shape[1]
        ids, mask = (x[:, -tail:].repeat(copies, 1) for x in (whole.ids, whole.mask))
        some = Tokens(ids, mask, whole.spans * copies, tuple(range(len(ids))))
        if not self.short:
            return some, {}
        before = [tuple(x[:, :, :-tail].repeat(copies, 1, 1, 1) for x in pair) for pair in self._prefix]
        return some, {"prefix": before, "prefix_mask": whole.mask[:, :-tail].repeat(copies, 1)}

    def start(self, layer: int, tail: int, copies: int) -> Float[Tensor, "copy prompt pos d_model"]:
        """resid_pre of a layer for every copy, which may be edited in place."""
        x = self.resid[layer]
        return (x[:, -tail:] if self.short else x).repeat(copies, 1, 1).unflatten(0, (copies, -1))

    def logits(
        self, layer: int, tail: int, start: Float[Tensor, "copy prompt pos d_model"], hooks: Sequence[Any] = ()
    ) -> Float[Tensor, "copy prompt vocab"]:
        """Next-token logits of a pass that begins with ``start`` at a layer."""
        some, before = self.rows(tail, len(start))
        with self.model.hooks(*hooks):
            found = self.model.logits(some, start=(layer, start.flatten(0, 1)), **before)
        return found[:, -1].unflatten(0, (len(start), -1))

    def see(
        self, layer: int, start: Float[Tensor, "copy prompt pos d_model"], names: Sequence[str]
    ) -> dict[str, Tensor]:
        """Activations of a pass that ends with them, [copy * prompt, pos, ...]."""
        some, before = self.rows(self.n_last, len(start))
        return self.model.cache(some, names, start=(layer, start.flatten(0, 1)), **before)

    def gradients(
        self, names: Sequence[str], metric: Callable[[Tensor], Tensor], along: tuple[int, Tensor]
    ) -> list[Float[Tensor, "value prompt pos *rest"]]:
        """Derivatives of both values with respect to activations at the last positions, hook point by hook point.

        Args:
            along: (layer, vector): the second value is resid_pre of that layer along it, at the last position.
        """
        kept: dict[str, Tensor] = {}
        end = f"blocks.{along[0]}.hook_resid_pre"

        def keep(name: str, x: Tensor, hook: Any) -> Tensor:
            # Weights may need no gradient, and then autograd begins to record here.
            kept[name] = x.clone() if x.requires_grad else x.detach().clone().requires_grad_()
            return kept[name]

        hooks = [(name, partial(keep, name)) for name in dict.fromkeys([*names, end])]
        with torch.inference_mode(False), torch.enable_grad():
            some, before = self.rows(self.n_last, 1)
            with self.model.hooks(*hooks), running(self.model, some):
                logits = self.model.backend.logits(some.ids, some.mask, True, **before)
            values = metric(logits[:, -1]).sum(), (wide(kept[end][:, -1]) @ along[1]).sum()
            wanted = [kept[name] for name in names]
            rows = [torch.autograd.grad(v, wanted, retain_graph=True, allow_unused=True) for v in values]
        found = []
        for x, *pair in zip(wanted, *rows, strict=True):
            both = torch.stack([torch.zeros_like(x) if g is None else g for g in pair]).detach()
            found.append(both[:, :, -self.n_last :])
        return found


def at_random(step: Float[Tensor, "*batch d"], generator: torch.Generator) -> Float[Tensor, "*batch d"]:
    """Steps as long as these, in random directions."""
    noise = torch.randn(step.shape, generator=generator).to(step)
    return step.norm(dim=-1, keepdim=True) * noise / noise.norm(dim=-1, keepdim=True)


class Pair(NamedTuple):
    """One batch in the run that goes on, and in the run that gives it activations."""

    into: Restarted
    source: Restarted
    rows: list[int]


def pairs_of(
    model: HookedChatModel, prompts: list[str], suffix: str, clean_suffixes: Sequence[str] | None, way: str
) -> list[Pair]:
    """The prompts in batches, in both runs, aligned at the suffix and the template (or at the template alone).

    Args:
        clean_suffixes: as many tokens as the suffix has, after each prompt; None for the prompts alone.

    Raises:
        PromptError: a suffix across the boundary, or clean suffixes of another length.
        LabelError: no such way.
    """
    index_of(WAYS, way, "way", "patching")
    check_suffix(model.chat, prompts, suffix, model.n_ctx)
    dirty, clean = model.tokenize(prompts, suffix), model.tokenize(prompts, clean_suffixes)
    n_last = dirty.n_post
    if clean_suffixes is not None:
        if any(a.suffix != b.suffix for a, b in zip(dirty.spans, clean.spans, strict=True)):
            raise PromptError(
                "the clean suffixes are not as many tokens as the suffix: draw them with random_controls, or give None "
                "for the prompts alone, of which the template is aligned"
            )
        n_last += max(b - a for a, b in (span.suffix for span in dirty.spans))
    found = []
    for batch in model.batches(dirty):
        index = list(batch.indices)
        both = [Restarted(model, tokens, n_last) for tokens in (batch, clean.take(index))]
        into, source = both if way == WAYS[0] else both[::-1]
        found.append(Pair(into, source, index))
    return found
