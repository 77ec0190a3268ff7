"""A result folder: the records of each stage, and the report made of them."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..attribution.causal_records import CausalCheck
from ..attribution.records import DirectLogitAttribution, TopHeads
from ..attribution.section import Inside, inside_section
from ..attribution.token_records import AttentionPatterns, Propagation, SourceContributions
from ..behaviour.records import EvaluationTable
from ..behaviour.section import effect_section, evaluation_section
from ..data.prompts import PromptSet
from ..direction.records import CandidateDirections, DirectionTrace, Selection, Stability
from ..direction.section import direction_section
from ..errors import RefusalLensError, ResultError
from ..exactness.records import Certificate
from ..exactness.section import certificate_section
from ..hijacking.records import Investigation
from ..hijacking.section import hijacking_section, suffix_findings
from ..records.base import Record, load_record
from ..records.files import file_digest, write_atomically
from ..refusal.records import Completions, Metrics, RefusalTokens
from ..report.page import Page, Section, plain
from .scorecard import scorecard_section
from .sections import model_section, provenance_section
from .summary import headline

# 1: no list of files, and maybe no certificate. 2: study.json comes last and lists every file with its SHA-256.
FOLDER_SCHEMA = 2
ATTACKS = "attacks"  # what the run itself found about suffixes; `refusal-lens hijack` writes to "suffixes"
# Folders inside a result folder that a run writes.
PARTS = ("stages", "inside", "items", ATTACKS, f"{ATTACKS}/screen", f"{ATTACKS}/suffixes")
INSIDE = {
    "heads": TopHeads,
    "causal": CausalCheck,
    "logits": DirectLogitAttribution,
    "propagation": Propagation,
    "sources": SourceContributions,
    "patterns": AttentionPatterns,
}


class Study:
    """A result folder: the records of each stage, loaded when asked for.

    Args:
        folder: where ``run_study`` put its results.

    Raises:
        ResultError: there is no finished study in the folder, or one of a newer version.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / "study.json").is_file():
            unfinished = "; its run was not finished: run it again" if (self.folder / "stages").is_dir() else ""
            raise ResultError(f"there is no study in {self.folder}: it has no study.json{unfinished}")
        schema = self.provenance.get("schema")
        if not isinstance(schema, int) or not 1 <= schema <= FOLDER_SCHEMA:
            raise ResultError(
                f"{self.folder / 'study.json'} has schema {plain(schema)}, and this version reads 1 to "
                f"{FOLDER_SCHEMA}: a newer refusal_lens wrote it, or the file is damaged"
            )

    @classmethod
    def load(cls, folder: str | Path) -> Study:
        """The same as ``Study(folder)``."""
        return cls(folder)

    def _json(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / name).read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ResultError(f"{self.folder / name} can't be read ({error}); run the study again") from error
        if not isinstance(found, dict):
            raise ResultError(f"{self.folder / name} holds no object; run the study again")
        return found

    def _setting(self, name: str, default: Any) -> Any:
        settings = self.provenance.get("settings")
        return settings.get(name, default) if isinstance(settings, dict) else default

    @cached_property
    def changed_files(self) -> tuple[str, ...]:
        """Files that are not as the run left them, by ``study.json``'s hashes (schema 1 has none)."""
        files = self.provenance.get("files", {})
        if not isinstance(files, dict):
            return ("study.json",)
        changed = []
        for name, digest in files.items():
            path = self.folder / name
            inside = not Path(name).is_absolute() and ".." not in Path(name).parts
            if not (inside and path.is_file() and file_digest(path) == digest):
                changed.append(name)
        return tuple(changed)

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
    def certificate(self) -> Certificate | None:
        """The identities measured on this model; None in folders older than the certificate (schema 1)."""
        if self.provenance["schema"] == 1:
            return self._optional("certificate", Certificate)
        return Certificate.load(self.folder / "certificate")

    @cached_property
    def inside(self) -> dict[str, Any]:
        """Attribution records by name (see ``INSIDE``); empty when the study was run without them."""
        # Records of an earlier run with other settings may still be there.
        if not self._setting("attribution", False) or not (self.folder / "inside").is_dir():
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
        return self._optional("stability", Stability) if self._setting("stability", 0) else None

    @cached_property
    def evaluation(self) -> EvaluationTable | None:
        """What ``refusal-lens evaluate`` left in the folder; None if nothing, or of another direction."""
        return self._of_this_direction(self._optional("evaluation/table", EvaluationTable))

    @cached_property
    def suffixes(self) -> Investigation | None:
        """What ``refusal-lens hijack`` left in the folder, else what the run itself looked into; None if nothing, or of
        another direction."""
        left = self._of_this_direction(self._optional("suffixes/report", Investigation))
        if left is not None or not self._setting("suffixes", None):
            return left
        return self._of_this_direction(self._optional(f"{ATTACKS}/report", Investigation))

    def _of_this_direction(self, record: Any) -> Any:
        """None for a record that an earlier run's direction gave: it says nothing of this one."""
        if record is None:
            return None
        mine, its = self.selection.chosen, record.direction
        return (
            record if (mine.model, mine.label) == (its.model, its.label) and torch.equal(mine.unit, its.unit) else None
        )

    def page(self) -> Page:
        """The report as a ``Page``: what the folder holds, in the order of the story.

        Raises:
            ResultError: a record is missing or broken, or the records do not fit together.
        """
        try:
            page = self._page()
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError) as error:
            if isinstance(error, RefusalLensError):
                raise
            # Each record is whole by itself, but the folder may come from anywhere.
            raise ResultError(
                f"the records in {self.folder} don't fit together ({type(error).__name__}: {str(error)[:120]}); run "
                "the study again"
            ) from error
        if not self.changed_files:
            return page
        note = f"Changed since the run, so not what it measured: {', '.join(self.changed_files)}."
        return replace(page, notes=(*page.notes, note))

    def _page(self) -> Page:
        inside = Inside(**self.inside) if self.inside else None
        more: dict[str, Section] = {}
        if self.evaluation is not None:
            more["judges"] = evaluation_section(self.evaluation)
        if self.suffixes is not None:
            more["suffixes"] = hijacking_section(self.suffixes)
        top = headline(self.summary, self.selection, inside, self.certificate, self.stability, tuple(more))
        if self.suffixes is not None:
            top["summary"] += suffix_findings(self.suffixes)
        return Page(
            title=f"The refusal direction of {self.provenance['model']['name']}",
            **top,
            sections=(
                model_section(self.provenance, self.harmful, self.harmless, self.refusal_tokens),
                direction_section(self.selection, self.candidates, self.stability),
                effect_section(self.completions, self.metrics.harmful, self.metrics.harmless),
                *([more["judges"]] if "judges" in more else []),
                inside_section(self.trace, inside),
                *([more["suffixes"]] if "suffixes" in more else []),
                *([certificate_section(self.certificate)] if self.certificate is not None else []),
                scorecard_section(self.summary),
                provenance_section(self.provenance),
            ),
        )

    def report(self, path: str | Path | None = None) -> Path:
        """Render the report (no model is needed) and return its path: ``report.html`` in the folder by default."""
        target = Path(path) if path is not None else self.folder / "report.html"
        write_atomically(target, self.page().render().encode())
        return target
