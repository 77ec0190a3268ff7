"""Results of a direction's effects at each dose and scope."""

from dataclasses import dataclass

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from ..records.base import Record
from ..records.direction import Direction
from ..records.labels import index_of
from ..stats import Interval, Rate, columns, mean_interval, rate

MEASURES = ("refused", "readable", "metric", "kl", "loss", "degenerate")
CONDITIONS = ("direction", "random")
SHARES = ("refused", "readable", "degenerate")
MAX_REFUSED, MIN_READABLE, MAX_KL, MAX_DEGENERATE = 0.1, 0.9, 0.1, 0.1


@dataclass(frozen=True)
class DoseItem(Record):
    """What an engine's item measures: the measures by intervention, and a reply where one was read and shown."""

    values: Float[Tensor, "edit measure prompt"]
    examples: tuple[str, ...]


_AXES = {"scope": "scopes", "dose": "doses", "condition": CONDITIONS, "measure": MEASURES, "effect": "effects"}


@dataclass(frozen=True)
class DoseResponse(Record, axes=_AXES):
    """Effect and damage of interventions along a direction, by strength and scope, each beside a random direction.

    Ablation and capping should end refusals of harmful prompts, addition should cause them on harmless ones: these
    replies are judged. Damage is measured where nothing should change, on the model's own replies to the other kind of
    prompts, teacher-forced.

    Attributes:
        doses: names of the doses: effect and strength, e.g. "ablation 0.5".
        dose_effects: effect of each dose.
        strengths: of each dose. Ablation: share of the projection removed. Addition: multiples of r in total, in equal
            parts over the scope's layers. Capping: the ceiling, from the harmless (0) to the harmful (1) mean
            projection of the training prompts, layer by layer (none where the harmful mean is no higher).
        values: float64. Shares are 0 or 1 per prompt: ``refused`` (judged), ``degenerate`` (empty or repetition),
            ``readable`` (refused and not degenerate); NaN at strengths without replies. ``metric`` is the refusal
            metric. ``kl`` is KL(baseline || changed) over the first 16 tokens of the baseline's own reply, nats per
            token, and ``loss`` that reply's mean negative log-likelihood per token (NaN where it is empty), both of
            the other kind's prompt.
        effects: labels of the baseline's first axis.
        baseline: the same without intervention, for the prompts of each effect.
        where: layers and positions of each scope, in words.
        examples: by scope and dose, the reply to the first harmless prompt under addition; "" under the other effects.
        direction: what was ablated, added or capped; None in records of older versions.
    """

    scopes: tuple[str, ...]
    doses: tuple[str, ...]
    dose_effects: tuple[str, ...]
    strengths: tuple[float, ...]
    values: Float[Tensor, "scope dose condition measure prompt"]
    effects: tuple[str, ...]
    baseline: Float[Tensor, "effect measure prompt"]
    where: tuple[str, ...]
    examples: tuple[tuple[str, ...], ...]
    max_new_tokens: int
    direction: Direction | None = None

    def found(self, scope: str, dose: str, condition: str, measure: str) -> Interval | Rate:
        """One point of a curve with its 95% interval: Clopper-Pearson's of a share, else a bootstrap over prompts."""
        return _point(self.sel(scope=scope, dose=dose, condition=condition, measure=measure).values, measure)

    def before(self, effect: str, measure: str) -> Interval | Rate:
        """The same without intervention, on the prompts of ``effect``."""
        return _point(self.baseline[index_of(self.effects, effect, "effect"), MEASURES.index(measure)], measure)

    def to_frame(self) -> pd.DataFrame:
        """One row per scope, dose and condition: each measure with its 95% interval, and whether the dose is usable."""
        rows = []
        for scope in self.scopes:
            for dose, effect, strength in self._doses():
                for condition in CONDITIONS:
                    row = {"scope": scope, "effect": effect, "strength": strength, "condition": condition}
                    for name in MEASURES:
                        row |= columns(self.found(scope, dose, condition, name), name, f"{name}_")
                    usable = condition == "direction" and not self.lacks(scope, dose)
                    rows.append({**row, "n": self.values.shape[-1], "usable": usable})
        return pd.DataFrame(rows)

    def lacks(self, scope: str, dose: str) -> tuple[str, ...]:
        """What keeps a dose from being usable; empty for a usable one.

        A dose is usable if it has its effect (under ablation and capping at most .1 refused, under addition at least .9
        refused in readable text), with an interval apart from the random direction's, a mean KL below .1 nats
        (the paper's limit for the next token) and fewer than .1 of the replies degenerate.
        """
        effect = self.dose_effects[index_of(self.doses, dose, "dose", "DoseResponse")]
        if dose not in self.replied():
            return ("no replies were generated",)
        name = "readable" if effect == "addition" else "refused"
        ours, random = (self.found(scope, dose, condition, name) for condition in CONDITIONS)
        kl, broken = (self.found(scope, dose, "direction", measure).mean for measure in ("kl", "degenerate"))
        if effect == "addition":
            reached, apart = ours.mean >= MIN_READABLE, ours.low > random.high
        else:
            reached, apart = ours.mean <= MAX_REFUSED, ours.high < random.low
        wants = {
            f"{name} {ours.mean:.2f}": reached,
            "not apart from a random direction": apart,
            f"KL {kl:.2g}": kl < MAX_KL,
            f"degenerate {broken:.2f}": broken < MAX_DEGENERATE,
        }
        return tuple(words for words, holds in wants.items() if not holds)

    def replied(self) -> tuple[str, ...]:
        """The doses at which replies were generated."""
        judged = self.values[0, :, 0, MEASURES.index("refused")].isfinite().all(-1).tolist()
        return tuple(dose for dose, read in zip(self.doses, judged, strict=True) if read)

    def window(self, effect: str, scope: str) -> tuple[float, ...]:
        """The usable strengths of an effect in a scope, in rising order."""
        index_of(self.effects, effect, "effect", "DoseResponse")
        return tuple(sorted(s for d, e, s in self._doses() if e == effect and not self.lacks(scope, d)))

    def summary(self) -> tuple[str, ...]:
        """The usable window of each effect, in words."""
        return tuple(map(self._usable, self.effects))

    def _usable(self, effect: str) -> str:
        windows = {scope: self.window(effect, scope) for scope in self.scopes}
        usable = [f"{scope}: {', '.join(f'{s:g}' for s in window)}" for scope, window in windows.items() if window]
        if usable:
            return f"{effect.capitalize()} is usable at these strengths: {'; '.join(usable)}."
        scope, dose, lacks = self._nearest(effect)
        nearest = f"nearest is {dose} at {scope} ({', '.join(lacks)})"
        return f"{effect.capitalize()} is usable at none of these strengths and scopes; {nearest}."

    def best(self, effect: str) -> tuple[str, float]:
        """Scope and strength that come closest to usable; at a tie the strongest effect, then the lowest KL."""
        scope, dose, _ = self._nearest(effect)
        return scope, self.strengths[self.doses.index(dose)]

    def _doses(self) -> list[tuple[str, str, float]]:
        return list(zip(self.doses, self.dose_effects, self.strengths, strict=True))

    def _nearest(self, effect: str) -> tuple[str, str, tuple[str, ...]]:
        index_of(self.effects, effect, "effect", "DoseResponse")

        def rank(place: tuple[str, str]) -> tuple[float, float, float]:
            reached = self.found(*place, "direction", "readable" if effect == "addition" else "refused").mean
            kl = self.found(*place, "direction", "kl").mean
            return len(self.lacks(*place)), -reached if effect == "addition" else reached, kl

        doses = [(s, d) for s in self.scopes for d, e, _ in self._doses() if e == effect]
        replied = self.replied()
        scope, dose = min([place for place in doses if place[1] in replied] or doses, key=rank)
        return scope, dose, self.lacks(scope, dose)


def _point(values: Tensor, measure: str) -> Interval | Rate:
    found = values[~values.isnan()]
    return rate([v > 0.5 for v in found.tolist()]) if measure in SHARES else mean_interval(found.tolist())
