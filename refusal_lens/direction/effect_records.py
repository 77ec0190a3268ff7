"""Effects of a direction: by form of ablation, on other behaviours, in fine-tuned models, under system prompts."""

from dataclasses import dataclass

import pandas as pd

from ..records.base import Record
from ..records.direction import Direction
from ..stats import Interval, Rate, columns

NOT_REFUSAL = "the threshold does not measure refusal"
ALONG = ("direction", "random", "matched")


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

    @property
    def sizes_in_words(self) -> str:
        """How many prompts a cell has."""
        return f"{' or '.join(map(str, sorted({cell.n for cell in self.change[0]})))} prompts per cell"

    def to_frame(self) -> pd.DataFrame:
        """One row per direction and ground."""
        return pd.DataFrame(
            {"effect": self.effect, "direction": direction, "prompts": ground, "baseline": self.baseline[j].mean}
            | {**columns(self.change[i][j], "change"), **columns(self.control[i][j], "random", "random_")}
            | {"n": self.change[i][j].n}
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
            {"step": step, "loss": self.loss[i], "cosine": self.cosine[i], "prompts": kind}
            | {"condition": condition, **columns(r, "refused"), "n": r.n}
            for i, step in enumerate(self.steps)
            for kind, rates in (("harmful", self.harmful[i]), ("harmless", self.harmless[i]))
            for condition, r in rates.items()
        )


@dataclass(frozen=True)
class SystemPrompts(Record):
    """Refusal rates under several system prompts (paper appendix F.2).

    Attributes:
        systems: the system prompts; "" for none added.
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


@dataclass(frozen=True)
class FormEffect(Record):
    """What one form of ablation does along one kind of direction.

    Attributes:
        along: "direction", "random" (random directions) or "matched" (every token moved as far as by the ablation,
            along random directions).
        harmful, harmless: refusal metric, bootstrap 95% intervals over prompts.
        kl: mean KL(baseline || ablated) of the next token on harmless prompts, nats.
        refused: share of refusals in replies to harmful prompts; None where no replies were made.
    """

    form: str
    along: str
    harmful: Interval
    harmless: Interval
    kl: Interval
    refused: Rate | None = None


@dataclass(frozen=True)
class AblationForms(Record):
    """Every form of ablation of one direction, beside its placebos.

    Attributes:
        validation: effects on validation prompts, which choose the form.
        test: effects on test prompts, with replies.
        harmful, harmless: refusal metric of the test prompts without intervention.
        refused: share of refusals in replies to harmful test prompts without intervention.
        max_kl: threshold of the selection rule.
        seeds: seeds of the random directions; metric and KL of a placebo are means over them, per prompt.
        left_out: form -> why it was not measured.
    """

    direction: Direction
    validation: tuple[FormEffect, ...]
    test: tuple[FormEffect, ...]
    harmful: Interval
    harmless: Interval
    refused: Rate | None
    max_kl: float
    seeds: tuple[int, ...]
    left_out: dict[str, str]

    @property
    def forms(self) -> tuple[str, ...]:
        """Names of the forms, in order."""
        return tuple(dict.fromkeys(e.form for e in self.test))

    def effect(self, form: str, along: str = "direction", test: bool = True) -> FormEffect:
        """What a form does along the direction or a placebo."""
        return next(e for e in (self.test if test else self.validation) if (e.form, e.along) == (form, along))

    def verdict(self, form: str) -> str:
        """Why a form is not to be recommended, by the validation prompts; "" if nothing speaks against it."""
        found, random, matched = (self.effect(form, along, test=False) for along in ALONG)
        if random.kl.mean > self.max_kl:
            return f"random directions have KL {random.kl.mean:.3g} too: {NOT_REFUSAL}"
        if found.kl.mean > self.max_kl:
            return f"KL {found.kl.mean:.3g} > {self.max_kl:g}"
        if not found.harmful.high < min(random.harmful.low, matched.harmful.low):
            return "the metric does not fall below that under the placebos"
        return ""

    @property
    def recommended(self) -> str:
        """The form with the lowest metric on harmful validation prompts among those nothing speaks against; "" if
        there is none."""
        good = [form for form in self.forms if not self.verdict(form)]
        return min(good, key=lambda form: self.effect(form, test=False).harmful.mean, default="")

    @property
    def warning(self) -> str:
        """That the thresholds do not measure refusal under the paper's form, and the form that does; "" where they
        do."""
        paper, best = self.verdict("paper") if "paper" in self.forms else "", self.recommended
        if NOT_REFUSAL not in paper:
            return ""
        named = f"the form {best!r} does" if best else "none of the forms measured does better here"
        return f"The paper's thresholds do not measure refusal on this model: under its form {paper}; {named}."

    def to_frame(self) -> pd.DataFrame:
        """One row per form and kind of direction, on test prompts."""
        return pd.DataFrame(
            {"form": e.form, "along": e.along, **columns(e.harmful, "harmful", "harmful_")}
            | {**columns(e.harmless, "harmless", "harmless_"), **columns(e.kl, "kl", "kl_")}
            | (columns(e.refused, "refused", "refused_") if e.refused is not None else {})
            | {"n_harmful": e.harmful.n, "n_harmless": e.kl.n}
            for e in self.test
        )
