"""Results of finding the direction: candidates, selection, trace, stability."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import DirectionError, ResultError
from ..records.base import Record
from ..records.direction import Direction
from ..records.labels import index_of
from ..records.stream import StreamStatistics
from ..refusal.records import RefusalTokens
from ..stats import Interval, Rate, columns, rate
from ..tensors import unit

SCORES = ("bypass", "induce", "kl")
MAX_GRID = 1 << 20  # positions x layers: far above any model


@dataclass(frozen=True)
class CandidateDirections(Record, axes={"pos": "positions"}):
    """Mean differences at all post-instruction positions and layers (paper section 2.3).

    Attributes:
        mean_diff: r[pos, layer], float64, harmful minus harmless mean of resid_pre; pos runs from -n_pos to -1.
        harmful_mean, harmless_mean: mean of resid_pre over prompts of a kind, same shape.
        pos_labels: the template tokens at these positions, for plots.
        basis, model: as in ``Direction``.
        statistics: of all tokens of the same prompts, by layer; None in older result folders.
    """

    mean_diff: Float[Tensor, "pos layer d_model"]
    harmful_mean: Float[Tensor, "pos layer d_model"]
    harmless_mean: Float[Tensor, "pos layer d_model"]
    pos_labels: tuple[str, ...]
    n_harmful: int
    n_harmless: int
    basis: str
    model: str
    statistics: StreamStatistics | None = None

    def energy(self, pos: int, layer: int) -> Float[Tensor, "d_model"]:
        """Share of each coordinate in the squared length of r, largest first; they sum to 1."""
        share = self.mean_diff[self.positions.index(pos), layer].square()
        return (share / share.sum()).sort(descending=True).values

    @property
    def positions(self) -> range:
        """Positions of axis 0: -n_pos .. -1."""
        return range(-self.mean_diff.shape[0], 0)

    @property
    def n_layers(self) -> int:
        """Number of layers on axis 1."""
        return self.mean_diff.shape[1]

    def direction(self, pos: int | str, layer: int, coeff: float = 1.0, relaxed: str = "") -> Direction:
        """The candidate at (pos, layer); the position by number or by its label, such as "request".

        Raises:
            LabelError: there is no such position; the message lists the existing ones.
            DirectionError: its mean difference is zero or not finite (e.g. identical tokens at layer 0).
        """
        if isinstance(pos, str):
            pos = self.positions[index_of(self.pos_labels, pos, "position", "CandidateDirections")]
        r = self.mean_diff[index_of(self.positions, pos, "position", "CandidateDirections"), layer]
        norm = float(r.norm())
        if not 0 < norm < float("inf"):
            raise DirectionError(f"candidate ({pos}, {layer}) has norm {norm}: it has no direction")
        return Direction((r / norm).float(), norm, pos, layer, self.basis, self.model, coeff, relaxed)


@dataclass(frozen=True)
class SelectionScores(Record, axes={"pos": "positions"}):
    """The paper's three scores of every candidate (section 2.3); NaN where not computed or not a number.

    Attributes:
        bypass: mean refusal metric on harmful prompts under ablation, [pos, layer]; lower is better.
        induce: mean refusal metric on harmless prompts under addition.
        kl: mean KL(baseline || ablated) of the next token on harmless prompts, nats.
    """

    bypass: Float[Tensor, "pos layer"]
    induce: Float[Tensor, "pos layer"]
    kl: Float[Tensor, "pos layer"]

    @property
    def positions(self) -> range:
        """Positions of axis 0: -n_pos .. -1."""
        return range(-self.bypass.shape[0], 0)

    @classmethod
    def from_records(cls, rows: list[dict]) -> SelectionScores:
        """Read the rows of the official code's ``direction_evaluations.json``.

        Args:
            rows: each with position, layer, refusal_score (bypass), steering_score (induce), kl_div_score.

        Raises:
            ResultError: if a row lacks a field or lies outside the grid.
        """
        try:
            n_pos = -min(int(row["position"]) for row in rows)
            depth = 1 + max(int(row["layer"]) for row in rows)
            if not (n_pos > 0 and depth > 0 and n_pos * depth <= MAX_GRID):  # before memory is asked for
                raise ValueError(f"a grid of {n_pos} positions and {depth} layers")
            grids = torch.full((3, n_pos, depth), float("nan"), dtype=torch.float64)
            for row in rows:
                found = [row[name] for name in ("refusal_score", "steering_score", "kl_div_score")]
                values = [math.nan if v is None else v for v in found]
                grids[:, row["position"] + n_pos, row["layer"]] = torch.tensor(values, dtype=torch.float64)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise ResultError(f"these are not rows of direction_evaluations.json: {error!r}") from error
        return cls(*grids)

    def to_frame(self) -> pd.DataFrame:
        """One row per candidate: pos, layer, bypass, induce, kl."""
        grids = {name: getattr(self, name).tolist() for name in SCORES}
        return pd.DataFrame(
            {"pos": pos, "layer": layer, **{name: grid[i][layer] for name, grid in grids.items()}}
            for i, pos in enumerate(self.positions)
            for layer in range(self.bypass.shape[1])
        )


@dataclass(frozen=True)
class NearMiss(Record):
    """A candidate that the rule dropped, and the changes that would keep it."""

    pos: int
    layer: int
    bypass: float
    induce: float
    kl: float
    needs: tuple[str, ...]
    coeff: float = 1.0

    def __str__(self) -> str:
        scores = f"bypass {self.bypass:.2f}, induce {self.induce:.2f}, KL {self.kl:.3f}"
        return f"({self.pos}, {self.layer}): {scores}; needs {' and '.join(self.needs)}"


@dataclass(frozen=True)
class Selection(Record):
    """The chosen direction, and why each candidate was kept or dropped.

    Attributes:
        reasons: reason by ``[pos][layer]``; "" for a kept candidate.
        kept: (pos, layer) of the kept candidates, best first.
        baseline_harmful, baseline_harmless: mean refusal metric on the validation prompts without intervention.
        near_misses: nearest dropped candidates, if none passed.
        n_harmful, n_harmless: number of validation prompts after filtering.
        form: of the ablation that bypass and KL are of.
        placebo_kl: KL of random directions under the same ablation, which stands beside every candidate's.
    """

    chosen: Direction
    scores: SelectionScores
    reasons: tuple[tuple[str, ...], ...]
    kept: tuple[tuple[int, int], ...]
    baseline_harmful: float
    baseline_harmless: float
    thresholds: dict[str, float]
    near_misses: tuple[NearMiss, ...] = ()
    n_harmful: int = 0
    n_harmless: int = 0
    form: str = "paper"
    placebo_kl: tuple[float, ...] = ()

    @property
    def placebo_fails(self) -> bool:
        """Whether no random direction keeps the threshold of KL, so that it does not measure refusal."""
        return bool(self.placebo_kl) and min(self.placebo_kl) > self.thresholds["max_kl"]

    @property
    def direction(self) -> Direction:
        """The winner, under the name that every result with a direction uses."""
        return self.chosen

    def __repr__(self) -> str:
        scores = ", ".join(f"{name} {self.score(name):.3g}" for name in SCORES)
        return f"Selection({self.chosen.label}, {scores}, {len(self.kept)} of {self.scores.bypass.numel()} kept)"

    def score(self, name: str) -> float:
        """``bypass``, ``induce`` or ``kl`` of the chosen candidate; LabelError for another name."""
        grid = getattr(self.scores, SCORES[index_of(SCORES, name, "score", "Selection")])
        return float(grid[self.scores.positions.index(self.chosen.pos), self.chosen.layer])

    def to_frame(self) -> pd.DataFrame:
        """One row per candidate: pos, layer, the three scores, and the reason that dropped it ("" for none)."""
        return self.scores.to_frame().assign(reason=[reason for row in self.reasons for reason in row])


@dataclass(frozen=True)
class DirectionTrace(Record, axes={"condition": "conditions"}):
    """Cosine and projection of the last position's residual stream on r̂, by layer (paper Fig. 5).

    Attributes:
        cosine: [condition, layer, prompt]; layer l is resid_pre of l, and the last entry the final resid_post.
        projection: r̂ᵀx, same shape, residual-stream units.
    """

    cosine: Float[Tensor, "condition layer prompt"]
    projection: Float[Tensor, "condition layer prompt"]
    conditions: tuple[str, ...]
    direction: Direction | None = None


@dataclass(frozen=True)
class Stability(Record):
    """Winners of the selection over bootstrap resamples of the training prompts.

    Attributes:
        reference: the direction chosen on all training prompts.
        winners: the winner of each resample that had one.
        relaxed: resamples in which no candidate passed the rule and the nearest one was taken.
    """

    reference: Direction
    winners: tuple[Direction, ...]
    resamples: int
    n_harmful: int
    n_harmless: int
    relaxed: int = 0

    @property
    def wins(self) -> dict[str, Rate]:
        """Share of resamples that each candidate won, highest first, with 95% intervals; "none" where none did."""
        labels = [w.label for w in self.winners] + ["none"] * (self.resamples - len(self.winners))
        return {label: rate([other == label for other in labels]) for label, _ in Counter(labels).most_common()}

    @property
    def cosines(self) -> Float[Tensor, "winner winner"]:
        """Cosine between every two winners."""
        units = unit(torch.stack([w.unit for w in self.winners]).double())
        return units @ units.T

    @property
    def to_reference(self) -> Float[Tensor, "winner"]:
        """Cosine of each winner with the reference."""
        return torch.stack([w.unit for w in self.winners]).double() @ unit(self.reference.unit.double())

    def pairwise(self) -> Interval:
        """Mean cosine of two winners, with the range that holds 95% of the pairs."""
        upper = torch.triu_indices(len(self.winners), len(self.winners), 1)
        pairs = self.cosines[upper[0], upper[1]]
        if not len(pairs):
            return Interval(math.nan, math.nan, math.nan, 0)
        low, high = torch.quantile(pairs, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return Interval(float(pairs.mean()), low, high, len(pairs))

    def to_frame(self) -> pd.DataFrame:
        """One row per candidate that won: its share of the resamples; ``whole``: whether all prompts choose it."""
        rows = ({"candidate": label, **columns(r, "share"), "n": r.n} for label, r in self.wins.items())
        return pd.DataFrame({**row, "whole": row["candidate"] == self.reference.label} for row in rows)


@dataclass(frozen=True)
class FoundDirection(Record):
    """The refusal direction of a model, and how it was found."""

    selection: Selection
    candidates: CandidateDirections
    refusal_tokens: RefusalTokens

    @property
    def direction(self) -> Direction:
        """The chosen direction."""
        return self.selection.chosen

    @property
    def scores(self) -> SelectionScores:
        """The paper's three scores of every candidate."""
        return self.selection.scores

    def __repr__(self) -> str:
        return f"FoundDirection({self.selection!r}, {self.refusal_tokens!r})"

    def to_frame(self) -> pd.DataFrame:
        """One row per candidate: pos, layer, the three scores, and the reason that dropped it ("" for none)."""
        return self.selection.to_frame()
