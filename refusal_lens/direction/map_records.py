"""The map of a conversation: every token on the direction, at every layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from ..records.base import Record
from ..records.direction import Direction
from ..records.labels import index_of

VALUES = ("projection", "cosine", "low", "high")


@dataclass(frozen=True)
class ConversationMap(Record, axes={"condition": "conditions"}, also=("outside",)):
    """Projection and cosine of every token of a conversation on r̂, at every layer, under one or more conditions.

    Tokens are counted from the first one, so that conditions share the axis until their texts differ; NaN after the end
    of a shorter text.

    Attributes:
        projection: r̂ᵀx, residual-stream units; layer l is resid_pre of l, and the last entry the final resid_post.
        cosine: of x and r̂, same shape.
        low, high: range of the projections on ``n_random`` random unit vectors, same shape: the neutral band.
        conditions: "baseline" without suffix and intervention, "adversarial" with the suffix, then the interventions'.
        tokens: text of each condition's tokens.
        regions: region of each of these tokens: one of the template's, "system", "earlier", "instruction", "suffix",
            "thought" or "reply".
        prompt: the request, or the conversation up to it.
        suffix: what stands after the request in all conditions but "baseline"; in "random_suffix", random tokens do.
    """

    projection: Float[Tensor, "condition layer token"]
    cosine: Float[Tensor, "condition layer token"]
    low: Float[Tensor, "condition layer token"]
    high: Float[Tensor, "condition layer token"]
    conditions: tuple[str, ...]
    tokens: tuple[tuple[str, ...], ...]
    regions: tuple[tuple[str, ...], ...]
    direction: Direction
    n_random: int
    prompt: str
    suffix: str = ""

    def outside(self) -> Float[Tensor, "condition layer token"]:
        """The projection where it leaves the range of the random directions, 0 inside of it."""
        inside = (self.projection >= self.low) & (self.projection <= self.high)
        return self.projection.masked_fill(inside, 0)

    def layer_of(self, layer: int | None) -> int:
        """A layer of the map, the direction's own for None, counted from the end below 0; LabelError for another."""
        n = self.projection.shape[1]
        chosen = self.direction.layer if layer is None else layer
        return index_of(range(-n, n), chosen, "layer", "a ConversationMap") % n

    def shown(self, conditions: Sequence[str] | None = None) -> list[int]:
        """Places of some conditions, of all for None; LabelError for a name that is none."""
        names = self.conditions if conditions is None else conditions
        return [index_of(self.conditions, name, "condition", "a ConversationMap") for name in names]

    def to_frame(self, layer: int | None = None) -> pd.DataFrame:
        """One row per condition and token at a layer (the direction's own for None): region, projection, cosine, low,
        high, and whether the projection lies outside of them (of a token without r̂, 2 in ``n_random`` + 1 do)."""
        layer, frames = self.layer_of(layer), []
        for i, condition in enumerate(self.conditions):
            n, texts = len(self.tokens[i]), {"text": self.tokens[i], "region": self.regions[i]}
            values = {name: getattr(self, name)[i, layer, :n].tolist() for name in VALUES}
            frames.append(pd.DataFrame({"condition": condition, "token": range(n), **texts, **values}))
        frame = pd.concat(frames, ignore_index=True)
        return frame.assign(outside=(frame["projection"] < frame["low"]) | (frame["projection"] > frame["high"]))
