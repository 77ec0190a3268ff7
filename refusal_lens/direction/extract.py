"""Difference-in-means directions at every post-instruction position and layer (paper section 2.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..engines.base import Engine
from ..engines.local import LocalEngine
from ..models.backend import SharedPrefix
from ..models.health import check_activations
from ..models.model import HookedChatModel
from ..models.packing import Pack, pack_tokens, packing_holds, read_resid, shared_prefix
from .records import CandidateDirections

SHARD = 64  # prompts an item: what one worker sums at a time


@dataclass(frozen=True)
class _Sums:
    """Sums of resid_pre over prompts, [pos, layer, d_model] in float64.

    Attributes:
        sample: prompts on which it is tried whether the model can run packed ones.
    """

    sample: tuple[str, ...]

    def prepare(self, model: HookedChatModel) -> bool:
        """Whether prompts can be packed."""
        return packing_holds(model, model.tokenize(self.sample))

    def run(self, model: HookedChatModel, state: bool, item: Sequence[str]) -> Float[Tensor, "pos layer d_model"]:
        """The sum over the prompts of ``item``; memory is one batch and one sum."""
        tokens = model.tokenize(item)
        shape = (tokens.n_post, model.n_layers, model.d_model)
        total = torch.zeros(shape, dtype=torch.float64, device=model.device)
        if state:
            pack = pack_tokens(tokens, model.chat.pad_id)
            prefix = shared_prefix(pack)
            for some in pack.passes():
                self._add(model, pack.rows(some), prefix, total)
            return total.cpu()
        names = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.n_layers)]
        for batch in model.batches(tokens):
            cached = model.cache(batch, names, positions=slice(-tokens.n_post, None))
            for layer, name in enumerate(names):
                total[:, layer] += cached[name].double().sum(0).to(total)
        return total.cpu()

    def _add(self, model: HookedChatModel, pack: Pack, prefix: SharedPrefix | None, total: Tensor) -> None:
        post = pack.end[:, None] + torch.arange(1 - len(total), 1, device=pack.end.device)

        def add(layer: int, x: Tensor) -> None:
            # A model spread over devices has its layers' streams elsewhere.
            total[:, layer] += x[pack.row[:, None].to(x.device), post.to(x.device)].double().sum(0).to(total)

        read_resid(model, pack, model.n_layers, add, prefix)


def _means(
    model: HookedChatModel,
    sets: Sequence[Sequence[str]],
    on_batch: Callable[[int], None] | None,
    engine: Engine | None,
) -> list[Float[Tensor, "pos layer d_model"]]:
    """Mean resid_pre of each set of prompts, as one work: what items share is made once."""
    texts = [list(prompts) for prompts in sets]
    for some in texts:
        model.tokenize(some[:1])  # an empty list is refused here, in one sentence
    items = [(k, some[i : i + SHARD]) for k, some in enumerate(texts) for i in range(0, len(some), SHARD)]
    done = None if on_batch is None else (lambda index: on_batch(len(items[index][1])))
    work = _Sums(tuple(text for some in texts for text in some[:3]))
    totals: list[Any] = [0] * len(texts)
    found = (engine or LocalEngine(model)).each("sums", work, [some for _, some in items], done)
    for (k, _), sums in zip(items, found, strict=True):
        totals[k] = totals[k] + sums
    for total in totals:
        check_activations(
            model.name, {f"blocks.{layer}.hook_resid_pre": total[:, layer] for layer in range(model.n_layers)}
        )
    return [total / len(some) for total, some in zip(totals, texts, strict=True)]


def mean_activations(
    model: HookedChatModel,
    prompts: Sequence[str],
    on_batch: Callable[[int], None] | None = None,
    engine: Engine | None = None,
) -> Float[Tensor, "pos layer d_model"]:
    """Mean resid_pre at the post-instruction positions, accumulated in float64.

    Memory is one batch and one running sum, whatever the number of prompts. Interventions active on the model act with
    the local engine, where batches are then by length instead of packed.

    Args:
        on_batch: called with a number of prompts when they are done.
        engine: where the work runs; this process if None.

    Raises:
        ModelError: an activation is NaN or infinite; with the name of its hook point.
    """
    return _means(model, [prompts], on_batch, engine)[0]


def extract_directions(
    model: HookedChatModel,
    harmful: Sequence[str],
    harmless: Sequence[str],
    on_batch: Callable[[int], None] | None = None,
    engine: Engine | None = None,
) -> CandidateDirections:
    """Mean over harmful minus mean over harmless, for every post-instruction position and layer.

    Args:
        model: the chat model.
        harmful, harmless: requests (the training split).
        on_batch: called with the number of prompts done after each batch.
        engine: where the work runs; this process if None.
    """
    means = _means(model, (harmful, harmless), on_batch, engine)
    return CandidateDirections(
        mean_diff=means[0] - means[1],
        harmful_mean=means[0],
        harmless_mean=means[1],
        pos_labels=model.chat.post_labels(),
        n_harmful=len(harmful),
        n_harmless=len(harmless),
        basis=model.basis,
        model=model.fingerprint,
    )
