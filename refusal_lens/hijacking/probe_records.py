"""Detectors against each other: results of ``compare_detectors``."""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from ..records.base import Record
from ..records.direction import Direction
from ..records.labels import index_of
from ..stats import Interval, Rate, auroc, columns, rate

PROBES = ("logistic regression", "sparse probe", "Mahalanobis distance")  # which are trained
DETECTORS = ("projection", "pooled projection", *PROBES, "random direction")
ENOUGH = 500  # harmless prompts on which a threshold is set


@dataclass(frozen=True)
class DetectorComparison(Record, axes={"detector": DETECTORS, "prompt": "groups"}):
    """Detectors of harmful requests, each at the layer that separates validation prompts best.

    Attributes:
        direction: r̂, whose position all read.
        validation: AUROC on validation prompts.
        layers: chosen layer of each of ``DETECTORS``; where several separate all prompts, the one with the largest gap
            in standard deviations.
        thresholds: of each, set on harmless validation prompts.
        scores: of the test prompts at the chosen layers, higher for harmful ones.
        groups: group of each test prompt, e.g. "harmful + suffix 1".
        tests: (name, harmful group, harmless group).
        n_train, n_val: harmful and harmless prompts.
        suffixes: text of suffix 1, 2 ...; random tokens of equal length have its number.
        false_alarms: share of the harmless validation prompts that may lie above a threshold.
        notes: what could not be read, in words.
    """

    direction: Direction
    validation: Float[Tensor, "detector layer"]
    layers: tuple[int, ...]
    thresholds: tuple[float, ...]
    scores: Float[Tensor, "detector prompt"]
    groups: tuple[str, ...]
    tests: tuple[tuple[str, str, str], ...]
    n_train: tuple[int, int]
    n_val: tuple[int, int]
    suffixes: tuple[str, ...] = ()
    false_alarms: float = 0.01
    notes: tuple[str, ...] = ()

    def of(self, detector: str, group: str) -> list[float]:
        """Scores of a group.

        Raises:
            LabelError: there is no such detector or group.
        """
        index_of(tuple(dict.fromkeys(self.groups)), group, "group", "DetectorComparison")
        row = self.scores[index_of(DETECTORS, detector, "detector", "DetectorComparison")].tolist()
        return [score for score, own in zip(row, self.groups, strict=True) if own == group]

    def auroc(self, detector: str, test: str) -> Interval:
        """Area under the ROC curve of a test's two groups, with DeLong's 95% interval."""
        names = [name for name, *_ in self.tests]
        _, harmful, harmless = self.tests[index_of(names, test, "test", "DetectorComparison")]
        return auroc(self.of(detector, harmful), self.of(detector, harmless))

    def flagged(self, detector: str, group: str) -> Rate:
        """Share of a group above the threshold, 95% Clopper-Pearson: detections, or false alarms."""
        found = self.of(detector, group)
        return rate([score > self.thresholds[DETECTORS.index(detector)] for score in found])

    def losses(self) -> Iterator[tuple[str, str, str, Interval | Rate, Interval | Rate]]:
        """Where the projection loses: (test, measure, detector, its value, the projection's), the intervals apart.

        The measures are "AUROC" and "detected"; of several detectors that are better, the best is named. Detections do
        not count where a detector clearly raises more false alarms on the test's harmless prompts than it may.
        """
        seen = set()
        for test, harmful, harmless in self.tests:
            for what in ("AUROC", "detected")[: 1 if harmful in seen else 2]:
                found: dict[str, Interval | Rate] = {
                    name: self.auroc(name, test) if what == "AUROC" else self.flagged(name, harmful)
                    for name in DETECTORS
                }
                best = max(self._usable(what, harmless), key=lambda name: found[name].low, default="projection")
                if found[best].low > found["projection"].high:
                    yield test, what, best, found[best], found["projection"]
            seen.add(harmful)

    def _usable(self, what: str, harmless: str) -> Iterator[str]:
        """The detectors that may be named for a measure, besides the projection and its control."""
        for name in DETECTORS[1:-1]:
            if what == "AUROC" or self.flagged(name, harmless).low <= self.false_alarms:
                yield name

    def summary(self) -> tuple[str, ...]:
        """How the projection stands against fitted detectors, and how certain the thresholds are, in words."""
        n, tested = self.n_val[1], self.groups.count("harmless")
        layers = ", ".join(f"{name} {layer}" for name, layer in zip(DETECTORS, self.layers, strict=True))
        false = ", ".join(f"{name} {self.flagged(name, 'harmless')}" for name in DETECTORS)
        said = [
            f"Probes were fitted on {self.n_train[0]} harmful and {self.n_train[1]} harmless plain prompts, each "
            f"detector's layer was chosen on {self.n_val[0]} and {n} others: {layers}.",
            f"The threshold lets {int(self.false_alarms * n)} of {n} harmless validation prompts pass; false alarms on "
            f"{tested} others: {false}.",
            f"AUROC on plain test prompts: projection {self.auroc('projection', 'plain')}, as a control a random "
            f"direction {self.auroc('random direction', 'plain')}.",
        ]
        if min(n, tested) < ENOUGH:
            said.append(
                f"Fewer than {ENOUGH} harmless prompts set the threshold ({n}) or tested it ({tested}): the share of "
                "false alarms is uncertain."
            )
        lost = [f"on {test}, {what} {own} against {best} of {x}" for test, what, x, best, own in self.losses()]
        names = ", ".join(name for name, *_ in self.tests)
        nowhere = f"Nowhere (tests: {names}) does another detector's interval lie above the projection's."
        said.append(f"The projection loses: {'; '.join(lost)}." if lost else nowhere)
        for test, _, harmless in self.tests:
            if harmless != "harmless" and (share := self.flagged("projection", harmless)).low > self.false_alarms:
                said.append(f"The projection raises false alarms on harmless prompts of {test}: {share}.")
        said += [f"Suffix {i}: {text.strip()!r}." for i, text in enumerate(self.suffixes, start=1)]
        return (*said, *(f"Left out: {note}." for note in self.notes))

    def to_frame(self) -> pd.DataFrame:
        """One row per test and detector: layer, AUROC, share detected and false alarms with intervals, n."""
        rows = []
        for test, harmful, harmless in self.tests:
            for name, layer in zip(DETECTORS, self.layers, strict=True):
                area = self.auroc(name, test)
                found, false = self.flagged(name, harmful), self.flagged(name, harmless)
                row = {"test": test, "detector": name, "layer": layer, **columns(area, "auroc", "auroc_")}
                row |= columns(found, "detected", "detected_") | columns(false, "false_alarms", "false_alarms_")
                rows.append(row | {"n_harmful": found.n, "n_harmless": false.n})
        return pd.DataFrame(rows)
