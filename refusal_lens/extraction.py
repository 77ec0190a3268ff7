"""Difference-in-means directions at every post-instruction position and layer (paper section 2.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .engines import Engine, LocalEngine
from .health import check_activations
from .model import HookedChatModel
from .packing import packing_holds, packs_of, prefix_keys, read_resid
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
            packs = packs_of(tokens)
            prefix = prefix_keys(model, packs)
            for pack in packs.rows:
                post = pack.ends[:, None] + torch.arange(1 - tokens.n_post, 1, device=pack.ends.device)

                def add(layer: int, x: Tensor, post: Tensor = post) -> None:
                    total[:, layer] += x[0, post].double().sum(0).to(total)

                read_resid(model, pack, model.n_layers, add, prefix)
            return total.cpu()
        names = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.n_layers)]
        for batch in model.batches(tokens):
            cached = model.cache(batch, names, positions=slice(-tokens.n_post, None))
            for layer, name in enumerate(names):
                total[:, layer] += cached[name].double().sum(0).to(total)
        return total.cpu()


def mean_activations(
    model: HookedChatModel,
    prompts: Sequence[str],
    on_batch: Callable[[int], None] | None = None,
    engine: Engine | None = None,
) -> Float[Tensor, "pos layer d_model"]:
    """Mean resid_pre at the post-instruction positions, accumulated in float64.

    Memory is one batch and one running sum, whatever the number of prompts. Interventions active on the model act with
    the local engine; they see several prompts in one row where the model allows it.

    Args:
        on_batch: called with a number of prompts when they are done.
        engine: where the work runs; this process if None.

    Raises:
        ModelError: an activation is NaN or infinite; with the name of its hook point.
    """
    texts = list(prompts)
    items = [texts[i : i + SHARD] for i in range(0, len(texts), SHARD)]
    model.tokenize(texts[:1])  # an empty list is refused here, in one sentence
    done = None if on_batch is None else (lambda index: on_batch(len(items[index])))
    total: Any = 0
    for sums in (engine or LocalEngine(model)).each("sums", _Sums(tuple(texts[:3])), items, done):
        total = total + sums
    check_activations(model, {f"blocks.{layer}.hook_resid_pre": total[:, layer] for layer in range(model.n_layers)})
    return total / len(texts)


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
    means = [mean_activations(model, prompts, on_batch, engine) for prompts in (harmful, harmless)]
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
