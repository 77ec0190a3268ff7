"""Effects of a direction elsewhere: other behaviours and prompts, fine-tuned models, system prompts."""

from dataclasses import dataclass

import pandas as pd

from ..records.base import Record
from ..records.direction import Direction
from ..stats import Interval, Rate, columns


@dataclass(frozen=True)
class EffectMatrix(Record):
    """Change in each ground's metric when each direction is ablated (or added), with a random control.

    Attributes:
        effect: "ablation" or "addition".
        directions, grounds: labels of the rows and columns.
        change: mean change in the metric by ``[direction][ground]``, bootstrap 95% intervals over prompts.
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
        """One row per direction and ground."""
        return pd.DataFrame(
            {
                "effect": self.effect,
                "direction": direction,
                "prompts": ground,
                "baseline": self.baseline[j].mean,
                **columns(self.change[i][j], "change"),
                **columns(self.control[i][j], "random", "random_"),
                "n": self.change[i][j].n,
            }
            for i, direction in enumerate(self.directions)
            for j, ground in enumerate(self.grounds)
        )


@dataclass(frozen=True)
class FineTuning(Record):
    """What a direction still does while the model is fine-tuned on benign completions.

    Attributes:
        direction: found before the fine-tuning.
        steps: optimizer steps at which everything was measured.
        loss: cross-entropy of held-out benign completions, nats per token.
        cosine: of the tuned model's own mean difference, at the same position and layer, with the direction.
        harmful, harmless: refusal rates by condition (the old direction, and a random one) at each of ``steps``.
        lr, batch_size, n_benign: settings of the fine-tuning.
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
        """One row per step, prompt set and condition."""
        return pd.DataFrame(
            {
                "step": step,
                "loss": self.loss[i],
                "cosine": self.cosine[i],
                "prompts": kind,
                "condition": condition,
                **columns(r, "refused"),
                "n": r.n,
            }
            for i, step in enumerate(self.steps)
            for kind, rates in (("harmful", self.harmful[i]), ("harmless", self.harmless[i]))
            for condition, r in rates.items()
        )


@dataclass(frozen=True)
class SystemPrompts(Record):
    """Refusal rates under several system prompts (paper appendix F.2).

    Attributes:
        systems: the system prompts; "" for none added.
        prompt_set: name of the prompts.
        rates: refusal rate by [system prompt] and condition, 95% Clopper-Pearson intervals.
    """

    systems: tuple[str, ...]
    prompt_set: str
    rates: tuple[dict[str, Rate], ...]

    def spread(self, condition: str) -> tuple[float, float]:
        """Mean and standard deviation of a condition's rate over the system prompts (as the paper reports)."""
        values = pd.Series([rates[condition].rate for rates in self.rates])
        return float(values.mean()), float(values.std(ddof=0))

    def to_frame(self) -> pd.DataFrame:
        """One row per system prompt and condition."""
        return pd.DataFrame(
            {"system": system or "(none)", "condition": name, **columns(r, "rate"), "n": r.n}
            for system, rates in zip(self.systems, self.rates, strict=True)
            for name, r in rates.items()
        )
