"""Statistics of the residual stream: what its tokens look like by layer, and which of them are massive."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InterventionError
from .base import Record

MASSIVE = 8.0  # times the median: of a sequence's norms for tokens, of the root mean squares for coordinates
CONSTANT = 1e-12  # variance over mean square below which a coordinate does not vary: float32 rounds at about 1e-14


@dataclass(frozen=True)
class MassiveToken(Record):
    """A token whose norm is above ``MASSIVE`` medians of its sequence.

    Attributes:
        text, id: the token.
        layer: the layer where it is largest.
        ratio: its norm there over the median of its sequence, at most.
        times: how often it was massive, layers counted apart.
    """

    text: str
    id: int
    layer: int
    ratio: float
    times: int


@dataclass(frozen=True)
class StreamStatistics(Record):
    """Moments of resid_pre over the tokens of prompts, massive tokens left out, by layer.

    Attributes:
        mean, std: of every coordinate, float64, residual-stream units.
        norm: mean over prompts of the median norm of a token.
        n_tokens: tokens that count, by layer.
        n_prompts: prompts they come from.
        tokens: the massive tokens, largest first.
        basis, model: as in ``Direction``.
        covariance: of the coordinates, where it was asked for.
    """

    mean: Float[Tensor, "layer d_model"]
    std: Float[Tensor, "layer d_model"]
    norm: Float[Tensor, "layer"]
    n_tokens: tuple[int, ...]
    n_prompts: int
    tokens: tuple[MassiveToken, ...]
    basis: str
    model: str
    covariance: Float[Tensor, "layer d_model d_model"] | None = None

    @property
    def limit(self) -> Float[Tensor, "layer"]:
        """Norm above which a token counts as massive wherever its sequence is not seen whole (packed, decoding)."""
        return MASSIVE * self.norm

    @property
    def size(self) -> Float[Tensor, "layer d_model"]:
        """Root mean square of every coordinate."""
        return (self.mean.square() + self.std.square()).sqrt()

    def coordinates(self, layer: int) -> list[int]:
        """The massive coordinates of a layer: root mean square above ``MASSIVE`` medians, largest first."""
        size = self.size[layer]
        order = size.argsort(descending=True).tolist()
        return [i for i in order if float(size[i]) > MASSIVE * float(size.median())]

    def correlation(self, layer: int) -> Float[Tensor, "d_model d_model"]:
        """Correlation of the coordinates, shrunk towards the identity (Chen et al. 2010, oracle approximating).

        Tokens are fewer than the entries of a covariance, so that its inverse would amplify noise. With a shrinkage of
        1 the oblique form is the scaled one.

        Raises:
            InterventionError: the statistics were made without covariance.
        """
        if self.covariance is None:
            raise InterventionError(
                "these statistics have no covariance, which the oblique form takes: make them with "
                "stream_statistics(model, prompts, covariance=True)"
            )
        scale = self.std[layer].where(self.std[layer] > 0, torch.ones_like(self.std[layer]))
        c = self.covariance[layer] / scale[:, None] / scale
        p, n, trace, square = len(c), self.n_tokens[layer], float(c.trace()), float(c.square().sum())
        spread = (n + 1 - 2 / p) * (square - trace**2 / p)
        shrunk = 1.0 if spread <= 0 else min(1.0, ((1 - 2 / p) * square + trace**2) / spread)
        return (1 - shrunk) * c + shrunk * torch.eye(p, dtype=c.dtype)

    @cached_property
    def precision(self) -> Float[Tensor, "layer d_model d_model"]:
        """The inverses of ``correlation``, kept: a form is applied far more often than statistics are made."""
        return torch.stack([torch.linalg.inv(self.correlation(layer)) for layer in range(len(self.mean))])

    def to_frame(self) -> pd.DataFrame:
        """One row per layer: median norm of a token, median and largest size of a coordinate, massive coordinates."""
        return pd.DataFrame(
            {
                "layer": layer,
                "norm": float(self.norm[layer]),
                "size_median": float(self.size[layer].median()),
                "size_max": float(self.size[layer].max()),
                "massive_coordinates": len(self.coordinates(layer)),
                "n_tokens": n,
            }
            for layer, n in enumerate(self.n_tokens)
        )
