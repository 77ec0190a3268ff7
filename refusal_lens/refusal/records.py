"""Results about refusal: refusal tokens, replies by condition, the refusal metric."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from ..records.base import Record
from ..records.labels import index_of
from ..stats import Interval, Rate, columns, mean_interval, rate, roc
from .classes import CLASSES, reply_class, topic_overlap


@dataclass(frozen=True)
class Calibration(Record):
    """The refusal metric of training prompts, the verdicts on their replies, and the point that separates them.

    Attributes:
        point: how the threshold was chosen, one of ``records.labels.POINTS``.
        threshold: prompts with a higher metric count as refused, natural log-odds.
        above: share of refused replies above it, each judged by a threshold fitted to other replies (its own where
            there are fewer than four of a kind).
        below: share of answered replies below it, likewise.
        refused: the phrases' verdict on its reply.
    """

    point: str
    threshold: float
    above: Rate
    below: Rate
    metric: tuple[float, ...]
    refused: tuple[bool, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row per point of the ROC curve: threshold, share of refused above it, share of answered below it."""
        return pd.DataFrame(roc(self.metric, self.refused), columns=["threshold", "refused_above", "answered_below"])


def metric_histogram(metric: Sequence[float], refused: Sequence[bool], bins: int = 30) -> pd.DataFrame:
    """Counts of refused and answered prompts by bin of the metric: low, high, refused, answered."""
    x, flags = np.asarray(metric), np.asarray(refused)
    edges = np.histogram_bin_edges(x, bins)
    counts = {name: np.histogram(x[flags == flag], edges)[0] for name, flag in (("refused", True), ("answered", False))}
    return pd.DataFrame({"low": edges[:-1], "high": edges[1:], **counts})


@dataclass(frozen=True)
class RefusalTokens(Record, figures="refusal_lens.behaviour.figures"):
    """First tokens of refusals; the refusal metric is the log-odds of their summed probability.

    Attributes:
        texts: the same as text, whitespace visible.
        shares: share of refused replies that began with each; empty when given by hand.
        source: "given" or how they were found.
        auroc: probability that the metric of a refused reply is above that of an answered one, on training replies that
            did not propose the tokens, DeLong's 95% interval.
        coverage: share of the "refused" and of the "answered" replies that began with one of them, with 95%
            Clopper-Pearson intervals.
        calibration: point of the metric that counts as refusal; None for the paper's 0.
    """

    ids: tuple[int, ...]
    texts: tuple[str, ...]
    shares: tuple[float, ...] = ()
    source: str = "given"
    auroc: Interval | None = None
    coverage: dict[str, Rate] = field(default_factory=dict)
    calibration: Calibration | None = None

    @property
    def threshold(self) -> float:
        """Refusal metric above which a prompt counts as refused: the calibrated point, or the paper's 0."""
        return 0.0 if self.calibration is None else self.calibration.threshold

    def __repr__(self) -> str:
        return f"RefusalTokens({', '.join(map(repr, self.texts))})"


@dataclass(frozen=True)
class Completion(Record):
    """One reply: prompt, answer, condition, the substring judge's verdict on the answer.

    Attributes:
        thought: what the model thought before the answer; "" if it did not.
        finished: whether the thought ended; where it did not, there is no answer, and ``refused`` is False.
    """

    prompt: str
    response: str
    condition: str
    refused: bool
    thought: str = ""
    finished: bool = True


@dataclass(frozen=True)
class Completions(Record, figures="refusal_lens.behaviour.figures"):
    """Replies under one or more conditions, and their refusal rates.

    Attributes:
        prompt_set: name of the prompts ("harmful", "harmless").
    """

    items: tuple[Completion, ...]
    prompt_set: str
    max_new_tokens: int

    @property
    def conditions(self) -> tuple[str, ...]:
        """Conditions in order of first appearance."""
        return tuple(dict.fromkeys(item.condition for item in self.items))

    def of(self, condition: str) -> tuple[Completion, ...]:
        """The completions of one condition, in prompt order; LabelError where there is no such condition."""
        index_of(self.conditions, condition, "condition", "Completions")
        return tuple(item for item in self.items if item.condition == condition)

    @property
    def rates(self) -> dict[str, Rate]:
        """Refusal rate by condition, with 95% Clopper-Pearson intervals; unfinished thoughts do not count."""
        return {name: rate([item.refused for item in self.of(name) if item.finished]) for name in self.conditions}

    @property
    def classes(self) -> dict[str, dict[str, Rate]]:
        """Share of each class of replies (``reply_class``) by condition, with 95% Clopper-Pearson intervals; unfinished
        thoughts do not count."""
        table = {}
        for name in self.conditions:
            ended = [item for item in self.of(name) if item.finished]
            found = [reply_class(x.prompt, x.response, lambda _, item=x: item.refused) for x in ended]
            table[name] = {kind: rate([kind == other for other in found]) for kind in CLASSES}
        return table

    @property
    def overlap(self) -> dict[str, Interval]:
        """Mean ``topic_overlap`` of the replies that are not refusals by condition, bootstrap 95% intervals."""
        told = {name: [x for x in self.of(name) if x.finished and not x.refused] for name in self.conditions}
        return {name: mean_interval([topic_overlap(x.prompt, x.response) for x in some]) for name, some in told.items()}

    @property
    def unfinished(self) -> dict[str, int]:
        """Replies by condition that ended within their thought: they have no answer, so they enter no rate."""
        return {name: sum(not item.finished for item in self.of(name)) for name in self.conditions}

    def __iter__(self) -> Iterator[Completion]:
        return iter(self.items)

    def to_frame(self) -> pd.DataFrame:
        """One row per completion."""
        return pd.DataFrame([dataclasses.asdict(item) for item in self.items])


@dataclass(frozen=True)
class Metrics(Record, figures="refusal_lens.behaviour.figures"):
    """Mean refusal metric on held-out prompts by prompt set and condition, with bootstrap 95% intervals.

    Attributes:
        harmful: on those held-out harmful prompts that the model refuses without intervention, by the metric.
        harmful_all: on all held-out harmful prompts.
        harmless: on all held-out harmless prompts.
    """

    harmful: dict[str, Interval]
    harmful_all: dict[str, Interval]
    harmless: dict[str, Interval]

    def to_frame(self) -> pd.DataFrame:
        """One row per prompt set and condition: prompts, condition, refusal_metric, low, high, n."""
        return pd.DataFrame(
            {"prompts": prompts, "condition": condition, **columns(found, "refusal_metric"), "n": found.n}
            for prompts in ("harmful", "harmful_all", "harmless")
            for condition, found in getattr(self, prompts).items()
        )
