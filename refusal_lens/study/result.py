"""A result folder: the records of each stage, and the report made of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..attribution.records import LogitAttribution
from ..attribution.reports import CausalCheck, HeadReport
from ..attribution.token_records import AttentionPatterns, Propagation, SourceContributions
from ..certificate import Certificate
from ..errors import ResultError
from ..prompts import PromptSet
from ..records import (
    CandidateDirections,
    Completions,
    DirectionTrace,
    Record,
    RefusalTokens,
    Selection,
    load_record,
    write_atomically,
)
from ..report import (
    Page,
    Section,
    attribution_section,
    certificate_section,
    direction_section,
    effect_sections,
    headline,
    model_section,
    provenance_section,
)
from ..report.evaluation import scorecard_section
from ..stats import Interval

INSIDE = {
    "heads": HeadReport,
    "causal": CausalCheck,
    "logits": LogitAttribution,
    "propagation": Propagation,
    "sources": SourceContributions,
    "patterns": AttentionPatterns,
}


@dataclass(frozen=True)
class Metrics(Record):
    """Mean refusal metric on held-out prompts by prompt set and condition, with bootstrap 95% intervals.

    Attributes:
        harmful: on those held-out harmful prompts that the model refuses without intervention (metric > 0).
        harmful_all: on all held-out harmful prompts.
        harmless: on all held-out harmless prompts.
    """

    harmful: dict[str, Interval]
    harmful_all: dict[str, Interval]
    harmless: dict[str, Interval]


class Study:
    """A result folder: the records of each stage, loaded when asked for.

    Args:
        folder: where ``run_study`` put its results.

    Raises:
        ResultError: there is no study in the folder.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / "study.json").is_file():
            raise ResultError(f"there is no study in {self.folder}: it has no study.json")

    @classmethod
    def load(cls, folder: str | Path) -> Study:
        """The same as ``Study(folder)``."""
        return cls(folder)

    def _json(self, name: str) -> Any:
        try:
            return json.loads((self.folder / name).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ResultError(f"{self.folder / name} can't be read ({error}); run the study again") from error

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Settings, versions and hashes."""
        return self._json("study.json")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """``summary.json`` (docs/result_folder.md describes it)."""
        return self._json("summary.json")

    @cached_property
    def harmful(self) -> PromptSet:
        """Harmful prompts as used: training and validation splits are filtered."""
        return load_record(self.folder / "prompts_harmful", PromptSet)

    @cached_property
    def harmless(self) -> PromptSet:
        """Harmless prompts as used."""
        return load_record(self.folder / "prompts_harmless", PromptSet)

    @cached_property
    def refusal_tokens(self) -> RefusalTokens:
        """Tokens of the refusal metric."""
        return RefusalTokens.load(self.folder / "refusal_tokens")

    @cached_property
    def candidates(self) -> CandidateDirections:
        """All candidate directions."""
        return CandidateDirections.load(self.folder / "candidates")

    @cached_property
    def selection(self) -> Selection:
        """Scores, reasons and the chosen direction."""
        return Selection.load(self.folder / "selection")

    @cached_property
    def trace(self) -> DirectionTrace:
        """Cosine with the direction by layer."""
        return DirectionTrace.load(self.folder / "trace")

    @cached_property
    def metrics(self) -> Metrics:
        """Refusal metric by condition."""
        return Metrics.load(self.folder / "metrics")

    @cached_property
    def completions(self) -> dict[str, Completions]:
        """Replies by prompt set."""
        names = ("harmful", "harmless")
        return {name: Completions.load(self.folder / f"completions_{name}") for name in names}

    @cached_property
    def certificate(self) -> Certificate:
        """The identities measured on this model."""
        return Certificate.load(self.folder / "certificate")

    @cached_property
    def inside(self) -> dict[str, Record]:
        """Attribution records by name (see ``INSIDE``); empty when the study was run without them."""
        if not (self.folder / "inside").is_dir():
            return {}
        return {name: load_record(self.folder / "inside" / name, kind) for name, kind in INSIDE.items()}

    def _inside_sections(self) -> tuple[Section, ...]:
        return (attribution_section(**self.inside),) if self.inside else ()  # type: ignore[arg-type]

    def page(self) -> Page:
        """The report as a ``Page``."""
        return Page(
            title=f"The refusal direction of {self.provenance['model']['name']}",
            **headline(self.summary, self.selection),
            sections=(
                model_section(self.provenance, self.harmful, self.harmless, self.refusal_tokens),
                direction_section(self.selection, self.candidates),
                *effect_sections(self.completions, self.metrics.harmful, self.metrics.harmless, self.trace),
                *self._inside_sections(),
                certificate_section(self.certificate),
                scorecard_section(self.summary),
                provenance_section(self.provenance),
            ),
        )

    def report(self, path: str | Path | None = None) -> Path:
        """Render the report (no model is needed) and return its path: ``report.html`` in the folder by default."""
        target = Path(path) if path is not None else self.folder / "report.html"
        write_atomically(target, self.page().render().encode())
        return target
