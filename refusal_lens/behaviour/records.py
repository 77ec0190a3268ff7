"""Results about behaviour under conditions: replies and verdicts, losses, the metric as a proxy, benchmarks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..records.base import Record
from ..records.direction import Direction
from ..records.labels import index_of
from ..refusal.records import Completions, metric_histogram
from ..stats import Interval, Rate, auroc, columns, fraction_interval, mean_interval, rate


@dataclass(frozen=True)
class Verdict(Record):
    """One reply under one judge; see ``Judgement`` for ``withheld``, ``raw`` and ``score``."""

    judge: str
    kind: str
    prompt_set: str
    condition: str
    prompt: str
    response: str
    withheld: bool | None
    raw: str = ""
    score: float | None = None


def verdict_rates(verdicts: Sequence[Verdict]) -> dict[tuple[str, str, str], Rate]:
    """Share withheld by (prompt set, condition, judge) with 95% Clopper-Pearson intervals; unreadable verdicts
    count neither way."""
    return {cell: rate([v.withheld for v in some if v.withheld is not None]) for cell, some in _cells(verdicts).items()}


def _cells(verdicts: Sequence[Verdict]) -> dict[tuple[str, str, str], list[Verdict]]:
    found: dict[tuple[str, str, str], list[Verdict]] = {}
    for v in verdicts:
        found.setdefault((v.prompt_set, v.condition, v.judge), []).append(v)
    return found


@dataclass(frozen=True)
class Agreement(Record):
    """Two judges on the same replies.

    Attributes:
        agreed: share of replies with the same verdict, with its 95% Clopper-Pearson interval.
        kappa: Cohen's kappa; NaN where both judges always give the same verdict (chance agreement is then 1).
        disagreements: the replies judged differently, as (the first's verdict, the second's).
        unread: replies left out because a judge's answer could not be read.
    """

    first: str
    second: str
    agreed: Rate
    kappa: float
    disagreements: tuple[tuple[Verdict, Verdict], ...]
    unread: int = 0

    def to_frame(self) -> pd.DataFrame:
        """One row per disagreement."""
        return pd.DataFrame(
            {name: getattr(a, name) for name in ("prompt_set", "condition", "prompt", "response")}
            | {self.first: a.withheld, self.second: b.withheld}
            | {f"{self.first} said": a.raw, f"{self.second} said": b.raw}
            for a, b in self.disagreements
        )


@dataclass(frozen=True)
class EvaluationTable(Record):
    """Replies of every prompt set under every condition, and every judge's verdicts on them.

    Attributes:
        completions: replies, one entry per prompt set.
        seed: of the random directions.
    """

    model: str
    direction: Direction
    completions: tuple[Completions, ...]
    verdicts: tuple[Verdict, ...]
    agreements: tuple[Agreement, ...] = ()
    seed: int = 0

    @property
    def rates(self) -> dict[tuple[str, str, str], Rate]:
        """Share refused (or safe) by (prompt set, condition, judge), with 95% Clopper-Pearson intervals."""
        return verdict_rates(self.verdicts)

    @property
    def scores(self) -> dict[tuple[str, str, str], Interval]:
        """Mean score by (prompt set, condition, judge) of the judges that give one, bootstrap 95% intervals."""
        scores = {cell: [v.score for v in some if v.score is not None] for cell, some in _cells(self.verdicts).items()}
        return {cell: mean_interval(values) for cell, values in scores.items() if values}

    def to_frame(self) -> pd.DataFrame:
        """One row per cell: prompts, condition, judge, kind, rate, low, high, n, unread; where a judge gives scores,
        score, score_low and score_high."""
        scores, cells = self.scores, _cells(self.verdicts)
        return pd.DataFrame(
            {"prompts": key[0], "condition": key[1], "judge": key[2], "kind": cells[key][0].kind}
            | {**columns(r, "rate"), "n": r.n, "unread": len(cells[key]) - r.n}
            | ({**columns(scores[key], "score", "score_")} if key in scores else {})
            for key, r in self.rates.items()
        )


@dataclass(frozen=True)
class Losses(Record, axes={"condition": "conditions"}):
    """Summed negative log-likelihood of every text under every condition.

    Attributes:
        dataset: what the texts are, e.g. "text", "completions", "own".
        conditions: labels of axis 0 of ``nll``.
        nll: nats, summed over the tokens that count, float64.
        tokens: how many tokens count in each text.
        seed: of the bootstrap.
    """

    dataset: str
    conditions: tuple[str, ...]
    nll: Float[Tensor, "condition text"]
    tokens: Int[Tensor, "text"]
    seed: int = 0

    def ce(self, condition: str) -> Interval:
        """Mean loss per token (nats; all tokens of all texts weigh the same), bootstrap 95% interval over texts;
        LabelError where there is no such condition."""
        return fraction_interval(self._nll(condition).tolist(), self.tokens.tolist(), seed=self.seed)

    def perplexity(self, condition: str) -> Interval:
        """exp of the mean loss, and of its interval's ends."""
        ce = self.ce(condition)
        return Interval(math.exp(ce.mean), math.exp(ce.low), math.exp(ce.high), ce.n)

    def change(self, condition: str, baseline: str = "baseline") -> Interval:
        """Change in the mean loss from ``baseline``, bootstrapped over the same texts."""
        change = self._nll(condition) - self._nll(baseline)
        return fraction_interval(change.tolist(), self.tokens.tolist(), seed=self.seed)

    def _nll(self, condition: str) -> Float[Tensor, "text"]:
        return self.nll[index_of(self.conditions, condition, "condition", "Losses")].double()

    def to_frame(self) -> pd.DataFrame:
        """One row per condition: CE with interval, perplexity, change from the first condition."""
        return pd.DataFrame(
            {"dataset": self.dataset, "condition": name, **columns(ce := self.ce(name), "ce", "ce_")}
            | {"perplexity": math.exp(ce.mean), **columns(self.change(name, self.conditions[0]), "change", "change_")}
            | {"texts": ce.n, "tokens": int(self.tokens.sum())}
            for name in self.conditions
        )


@dataclass(frozen=True)
class RefusalProxy(Record, axes={"prompt": "prompts"}):
    """Refusal metric and verdict on the reply of every prompt.

    Attributes:
        prompt_sets: which set each belongs to ("harmful", "harmless").
        metric: refusal metric before the reply, natural log-odds.
        refused: whether the reply was judged a refusal.
    """

    prompts: tuple[str, ...]
    prompt_sets: tuple[str, ...]
    metric: Float[Tensor, "prompt"]
    refused: Bool[Tensor, "prompt"]

    @property
    def auroc(self) -> Interval:
        """Probability that a refused prompt has a higher metric than an answered one (ties count half), with DeLong's
        95% interval; NaN where one group is empty."""
        refused, answered = (self.metric[self.refused == flag].numpy() for flag in (True, False))
        return auroc(refused, answered)

    @property
    def accuracy(self) -> float:
        """Share of prompts on which "metric > 0" (the paper's filter) and the judge agree."""
        return float(((self.metric > 0) == self.refused).double().mean())

    def histogram(self, bins: int = 30) -> pd.DataFrame:
        """Counts of refused and answered prompts by bin of the metric (Figs. 9-10)."""
        return metric_histogram(self.metric.tolist(), self.refused.tolist(), bins)

    def to_frame(self) -> pd.DataFrame:
        """One row per prompt."""
        columns = {"prompt_set": self.prompt_sets, "prompt": self.prompts, "metric": self.metric.tolist()}
        return pd.DataFrame({**columns, "refused": self.refused.tolist()})


@dataclass(frozen=True)
class HarnessScore(Record):
    """One metric of one task under one condition, as the harness reports it.

    Attributes:
        metric: the harness's name, e.g. "acc,none".
        stderr: its standard error; NaN where the harness gives none.
        n: documents scored.
    """

    condition: str
    task: str
    metric: str
    value: float
    stderr: float
    n: int


@dataclass(frozen=True)
class HarnessScores(Record):
    """Scores by condition and task."""

    items: tuple[HarnessScore, ...]
    version: str

    def to_frame(self) -> pd.DataFrame:
        """One row per score, with its change from the first condition and a 99% interval (the paper's)."""
        first = self.items[0].condition if self.items else ""
        base = {(i.task, i.metric): i.value for i in self.items if i.condition == first}
        return pd.DataFrame(
            {"task": i.task, "metric": i.metric, "condition": i.condition, "value": i.value}
            | {"low": i.value - 2.576 * i.stderr, "high": i.value + 2.576 * i.stderr}
            | {"change": i.value - base.get((i.task, i.metric), float("nan")), "n": i.n}
            for i in self.items
        )
