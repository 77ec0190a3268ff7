"""The last positions of prompts, run again and again under interventions that act there only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from ..hooks.attention import HeadsIntervention
from ..hooks.interventions import NormMatchedPlacebo
from ..tensors import refusal_log_odds
from .backend import PrefixCache
from .batching import by_length
from .chat import Tokens

# Of one batch, padding included: passes run the last few positions only, so it takes many prompts to fill one.
BATCH_TOKENS = 4096


def rows_of_batches(tokens: Tokens) -> list[list[int]]:
    """Prompts of similar length, as many as fill a pass of their last positions."""
    return list(by_length(tokens.lengths.tolist(), lambda n, width, real: n * width <= BATCH_TOKENS))


@dataclass(frozen=True)
class Ending:
    """One batch whose passes run the last ``n_last`` positions, and begin at the first layer in which something acts.

    What stands before them is run once and kept as keys and values, where the model's attention allows it
    (``backend.supports_prefix``).
    """

    model: Any
    tokens: Tokens
    n_last: int
    tail: Tokens
    prefix: PrefixCache | None = None
    prefix_mask: Bool[Tensor, "batch prefix"] | None = None

    @classmethod
    def of(cls, model: Any, tokens: Tokens, n_last: int) -> Ending:
        """The ending of a batch under the interventions that are active now."""
        if not model.backend.supports_prefix or model.counts_positions:
            return cls(model, tokens, n_last, tokens)
        ids, mask, n = tokens.ids, tokens.mask, n_last
        tail = Tokens(ids[:, -n:], mask[:, -n:], tokens.spans, tokens.indices)
        return cls(model, tokens, n, tail, model.prefix_cache(ids[:, :-n], mask=mask[:, :-n]), mask[:, :-n])

    @cached_property
    def resid(self) -> list[Float[Tensor, "batch pos d_model"]]:
        """resid_pre of every layer without further interventions, at the positions that are run."""
        names = [f"blocks.{layer}.hook_resid_pre" for layer in range(self.model.n_layers)]
        return list(self.cache(names, whole=True).values())

    def cache(self, names: Iterable[str], whole: bool = False) -> dict[str, Tensor]:
        """Activations at the last positions, or at all that are run."""
        last = None if whole else slice(-self.n_last, None)
        return self.model.cache(self.tail, names, last, prefix=self.prefix, prefix_mask=self.prefix_mask)

    def log_odds(self, ids: tuple[int, ...], *interventions: Any) -> Float[Tensor, "batch"]:
        """Refusal metric under interventions, or hooks, that act at the last positions only."""
        layer = self._first_layer(interventions)
        start = self.resid[layer] if layer else None  # read before anything acts
        with self.model.hooks(*interventions):
            return refusal_log_odds(self.logits(layer, start), ids).cpu()

    def logits(self, layer: int = 0, start: Float[Tensor, "batch pos d_model"] | None = None) -> Tensor:
        """Logits of the last position under the active interventions, [batch, vocab]; with ``start`` at a layer."""
        begin = None if start is None else (layer, start)
        return self.model.logits(self.tail, start=begin, prefix=self.prefix, prefix_mask=self.prefix_mask)[:, -1]

    def _first_layer(self, interventions: Iterable[Any]) -> int:
        """The first layer in which one of them acts, as far as it is known; 0 elsewhere."""
        found: list[int] = []
        for one in interventions:
            if isinstance(one, HeadsIntervention):
                found += one.by_layer(self.model)
            elif isinstance(one, NormMatchedPlacebo):
                found += [int(name.split(".")[1]) for name in one.changes]
            else:
                return 0
        return min(found, default=0)
