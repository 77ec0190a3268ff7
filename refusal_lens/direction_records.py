"""Records about directions beyond the chosen one: stability, subspaces, effects on other ground.

No model is imported here, so that plots and reports can read them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from .linalg import unit
from .records import Direction, Record
from .stats import Interval, Rate, rate


@dataclass(frozen=True)
class Stability(Record):
    """Winners of the selection over bootstrap resamples of the training prompts.

    Attributes:
        reference: the direction that all training prompts give.
        winners: the winner of each resample that had one.
        resamples: number of resamples.
        n_harmful, n_harmless: training prompts of each kind.
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
        """Share of resamples that each candidate won, most first, with 95% intervals; "none" where none did."""
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
            return Interval(float("nan"), float("nan"), float("nan"), 0)
        low, high = torch.quantile(pairs, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return Interval(float(pairs.mean()), low, high, len(pairs))

    def to_frame(self) -> pd.DataFrame:
        """One row a candidate that won."""
        reference = self.reference.label
        return pd.DataFrame(
            [
                {
                    "candidate": label,
                    "share": r.rate,
                    "low": r.low,
                    "high": r.high,
                    "n": r.n,
                    "whole": label == reference,
                }
                for label, r in self.wins.items()
            ]
        )


@dataclass(frozen=True)
class SubspaceEffects(Record):
    """Ablating the first 1, 2, ... directions of subspaces: refusal metric on harmful, KL on harmless prompts.

    Attributes:
        kinds: the subspaces, the random one last.
        sizes: numbers of directions.
        bypass: mean refusal metric on harmful prompts by [kind][size], bootstrap 95% intervals.
        kl: mean KL(baseline || ablated) of the next token on harmless prompts, nats.
        baseline: refusal metric on harmful prompts without intervention.
        leading_cosine: cosine of each subspace's first direction with r̂.
    """

    kinds: tuple[str, ...]
    sizes: tuple[int, ...]
    bypass: tuple[tuple[Interval, ...], ...]
    kl: tuple[tuple[Interval, ...], ...]
    baseline: Interval
    leading_cosine: tuple[float, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row a subspace and size."""
        return pd.DataFrame(
            [
                {
                    "kind": kind,
                    "k": size,
                    "bypass": b.mean,
                    "bypass_low": b.low,
                    "bypass_high": b.high,
                    "kl": kl.mean,
                    "kl_low": kl.low,
                    "kl_high": kl.high,
                    "n": b.n,
                }
                for kind, row, kls in zip(self.kinds, self.bypass, self.kl, strict=True)
                for size, b, kl in zip(self.sizes, row, kls, strict=True)
            ]
        )


@dataclass(frozen=True)
class EffectMatrix(Record):
    """Change of each ground's metric when each direction is ablated (or added), with its random control.

    Attributes:
        effect: "ablation" or "addition".
        directions, grounds: labels of the rows and columns.
        change: mean change of the metric by [direction][ground], bootstrap 95% intervals over prompts.
        control: the same with a random direction of equal norm.
        baseline: mean metric of each ground without intervention.
        cosines: cosine of every two directions.
    """

    effect: str
    directions: tuple[str, ...]
    grounds: tuple[str, ...]
    change: tuple[tuple[Interval, ...], ...]
    control: tuple[tuple[Interval, ...], ...]
    baseline: tuple[Interval, ...]
    cosines: tuple[tuple[float, ...], ...]

    def to_frame(self) -> pd.DataFrame:
        """One row a direction and ground."""
        return pd.DataFrame(
            [
                {
                    "effect": self.effect,
                    "direction": direction,
                    "prompts": ground,
                    "baseline": self.baseline[j].mean,
                    "change": self.change[i][j].mean,
                    "low": self.change[i][j].low,
                    "high": self.change[i][j].high,
                    "random": self.control[i][j].mean,
                    "random_low": self.control[i][j].low,
                    "random_high": self.control[i][j].high,
                    "n": self.change[i][j].n,
                }
                for i, direction in enumerate(self.directions)
                for j, ground in enumerate(self.grounds)
            ]
        )


@dataclass(frozen=True)
class FineTuning(Record):
    """What a direction still does while the model is fine-tuned on benign completions.

    Attributes:
        direction: found before the fine-tuning.
        steps: optimizer steps at which everything was measured.
        loss: cross-entropy of held-out benign completions, nats a token.
        cosine: of the tuned model's own mean difference, at the same position and layer, with the direction.
        harmful, harmless: refusal rates by condition (the old direction, and a random one) at each of ``steps``.
        lr, batch_size, n_benign: of the fine-tuning.
    """

    direction: Direction
    steps: tuple[int, ...]
    loss: tuple[float, ...]
    cosine: tuple[float, ...]
    harmful: tuple[dict[str, Rate], ...]
    harmless: tuple[dict[str, Rate], ...]
    lr: float
    batch_size: int
    n_benign: int

    def to_frame(self) -> pd.DataFrame:
        """One row a step, prompt set and condition."""
        return pd.DataFrame(
            [
                {
                    "step": step,
                    "loss": self.loss[i],
                    "cosine": self.cosine[i],
                    "prompts": kind,
                    "condition": condition,
                    "refused": r.rate,
                    "low": r.low,
                    "high": r.high,
                    "n": r.n,
                }
                for i, step in enumerate(self.steps)
                for kind, rates in (("harmful", self.harmful[i]), ("harmless", self.harmless[i]))
                for condition, r in rates.items()
            ]
        )
