"""Difference-in-means directions at every post-instruction position and layer (paper section 2.3)."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.prompts import PromptsLike, as_prompts
from ..engines.base import Engine
from ..engines.local import LocalEngine
from ..hooks.base import Hooks, Model
from ..hooks.readers import Reader
from ..models.health import check_activations
from ..models.model import HookedChatModel
from ..progress import Progress, silent
from .records import CandidateDirections


class _Sum(Reader[Tensor]):
    """Sum of resid_pre over prompts, in float64: memory is one batch and one sum."""

    can_pack: ClassVar[bool] = True

    def begin(self, model: Model, tokens: Any) -> None:
        super().begin(model, tokens)
        self.n_post = tokens.n_post

    def hooks(self, model: Model, batch: Any) -> Hooks:
        self.layers: list[Tensor] = []

        def add(x: Tensor, hook: Any) -> None:
            self.layers.append(batch.last(x, self.n_post).double().sum(0).to(model.device))

        return [(f"blocks.{layer}.hook_resid_pre", add) for layer in range(model.n_layers)]

    def values(self, model: Model, batch: Any, logits: Tensor | None) -> dict[str, Tensor]:
        return {"sum": torch.stack(self.layers, 1)}

    def put(self, indices: Sequence[int], values: dict[str, Tensor]) -> None:
        self.rows["sum"] = self.rows.get("sum", 0) + values["sum"].cpu()

    def result(self) -> Float[Tensor, "pos layer d_model"]:
        return self.rows["sum"]


def mean_activations(
    model: HookedChatModel,
    prompts: PromptsLike,
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
    texts = as_prompts(prompts, "train")
    (total,) = model.run(texts, read=_Sum(), pack=True, engine=engine or LocalEngine(model), on_batch=on_batch)
    check_activations(model.name, {f"blocks.{layer}.hook_resid_pre": x for layer, x in enumerate(total.unbind(1))})
    return total / len(texts)


def extract_directions(
    model: HookedChatModel,
    harmful: PromptsLike,
    harmless: PromptsLike,
    progress: Progress = silent,
    engine: Engine | None = None,
) -> CandidateDirections:
    """Mean over harmful minus mean over harmless, for every post-instruction position and layer.

    Args:
        harmful, harmless: requests; of a ``PromptSet`` its training split.
        engine: where the work runs; this process if None.

    Example:
        >>> candidates = rl.extract_directions(model, data.harmful, data.harmless)  # of their training splits
        >>> candidates.sizes
        {'pos': 5, 'layer': 5, 'd_model': 96}
    """
    harmful, harmless = as_prompts(harmful, "train"), as_prompts(harmless, "train")
    with progress("extract directions", len(harmful) + len(harmless)) as advance:
        means = [mean_activations(model, prompts, advance, engine) for prompts in (harmful, harmless)]
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
