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
from ..behaviour_records import EvaluationTable
from ..certificate import Certificate
from ..direction_records import Stability
from ..errors import ResultError
from ..hijacking.records import HijackingReport
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
    Inside,
    Page,
    Section,
    certificate_section,
    direction_section,
    effect_section,
    headline,
    inside_section,
    model_section,
    provenance_section,
)
from ..report.evaluation import evaluation_section, scorecard_section
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

    def _optional(self, file: str, kind: type[Record]) -> Any:
        """A record that not every study has, or None."""
        path = self.folder / file
        there = any(path.with_name(path.name + ending).is_file() for ending in (".safetensors", ".json"))
        return load_record(path, kind) if there else None

    @cached_property
    def stability(self) -> Stability | None:
        """The selection over other draws of the training prompts; None when it was not measured."""
        return self._optional("stability", Stability)

    @cached_property
    def evaluation(self) -> EvaluationTable | None:
        """What ``refusal-lens evaluate`` left in the folder; None if nothing."""
        return self._optional("evaluation/table", EvaluationTable)

    @cached_property
    def suffixes(self) -> HijackingReport | None:
        """What ``refusal-lens hijack`` left in the folder; None if nothing."""
        return self._optional("suffixes/report", HijackingReport)

    def page(self) -> Page:
        """The report as a ``Page``: what the folder holds, in the order of the story."""
        inside = Inside(**self.inside) if self.inside else None  # type: ignore[arg-type]
        more: dict[str, Section] = {}
        if self.evaluation is not None:
            more["judges"] = evaluation_section(self.evaluation)
        if self.suffixes is not None:
            from ..report.hijacking import hijacking_section

            more["suffixes"] = hijacking_section(self.suffixes)
        return Page(
            title=f"The refusal direction of {self.provenance['model']['name']}",
            **headline(self.summary, self.selection, inside, self.certificate, self.stability, tuple(more)),
            sections=(
                model_section(self.provenance, self.harmful, self.harmless, self.refusal_tokens),
                direction_section(self.selection, self.candidates, self.stability),
                effect_section(self.completions, self.metrics.harmful, self.metrics.harmless),
                *([more["judges"]] if "judges" in more else []),
                inside_section(self.trace, inside),
                *([more["suffixes"]] if "suffixes" in more else []),
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
