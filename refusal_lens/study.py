"""The main job: the stages in order, each resumable, from a chat model to a folder of results.

A stage writes its records whole or not at all, and is not run again while its inputs are the same.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import pydantic

from .errors import PromptError, ResultError
from .evaluation import complete, necessity_conditions, refusal_rates, sufficiency_conditions, trace_direction
from .extraction import extract_directions
from .loading import load_model, source_digest
from .model import HookedChatModel
from .prompts import DEFAULT_SIZES, Prompts, PromptSet
from .records import (
    CandidateDirections,
    Completions,
    DirectionTrace,
    Record,
    RefusalTokens,
    Selection,
    load_record,
    to_json,
    write_atomically,
)
from .report import Page, direction_section, effect_sections, model_section, provenance_section
from .report.sections import headline
from .scoring import find_refusal_tokens, given_refusal_tokens, keep_refused, refusal_metric
from .selection import SelectionRule, select_direction
from .stats import Interval, mean_interval

SUMMARY_SCHEMA = 1
Advance = Callable[[int], None]
Progress = Callable[[str, int], AbstractContextManager[Advance]]


@contextmanager
def silent(name: str, total: int) -> Iterator[Advance]:
    """The default progress: none."""
    yield lambda n: None


class StudyConfig(pydantic.BaseModel):
    """Everything that decides the result of a study."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    model: str = pydantic.Field("organism", description="hub id, folder, .gguf file, or 'organism'")
    harmful: str | None = pydantic.Field(None, description="harmful prompts: file, stem, preset or data set id")
    harmless: str | None = pydantic.Field(None, description="harmless prompts, likewise")
    sizes: tuple[pydantic.PositiveInt, pydantic.PositiveInt, pydantic.PositiveInt] = DEFAULT_SIZES
    seed: int = 0
    dtype: str | None = None
    device: str | None = None
    device_map: str | None = None
    system: str | None = pydantic.Field(None, description="system prompt; none by default, as in the paper")
    coeff: float = pydantic.Field(1.0, gt=0, description="multiple of r that addition adds")
    max_kl: float = pydantic.Field(0.1, gt=0)
    min_induce: float = 0.0
    layer_cutoff: float = pydantic.Field(0.8, gt=0, le=1)
    relax: bool = pydantic.Field(False, description="take the nearest candidate when nothing passes")
    full_grid: bool = pydantic.Field(False, description="compute every score of every candidate")
    refusal_tokens: tuple[str, ...] = pydantic.Field((), description="ids or texts; found by default")
    max_new_tokens: int = pydantic.Field(64, ge=1)

    @property
    def rule(self) -> SelectionRule:
        """The selection rule of this study."""
        return SelectionRule(self.max_kl, self.min_induce, self.layer_cutoff)

    def sources(self) -> tuple[str, str]:
        """Where harmful and harmless prompts come from.

        Raises:
            PromptError: only one of them was given.
        """
        if (self.harmful is None) != (self.harmless is None):
            raise PromptError("give both --harmful and --harmless, or neither")
        if self.harmful is not None and self.harmless is not None:
            return self.harmful, self.harmless
        if self.model == "organism":
            from .organism import instructions

            return tuple(str(path) for path in instructions().values())
        return "advbench", "alpaca"


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

    def page(self) -> Page:
        """The report as a ``Page``."""
        return Page(
            title=f"The refusal direction of {self.provenance['model']['name']}",
            **headline(self.summary, self.selection),
            sections=(
                model_section(self.provenance, self.harmful, self.harmless, self.refusal_tokens),
                direction_section(self.selection, self.candidates),
                *effect_sections(self.completions, self.metrics.harmful, self.metrics.harmless, self.trace),
                provenance_section(self.provenance),
            ),
        )

    def report(self, path: str | Path | None = None) -> Path:
        """Render the report (no model is needed) and return its path: ``report.html`` in the folder by default."""
        target = Path(path) if path is not None else self.folder / "report.html"
        write_atomically(target, self.page().render().encode())
        return target


class _Runner:
    """Runs stages into a folder, skipping those whose inputs have not changed."""

    def __init__(self, folder: Path, config: StudyConfig, progress: Progress):
        self.folder, self.config, self.progress = folder, config, progress
        self._model: HookedChatModel | None = None
        self.digest = source_digest(config.model)

    @property
    def model(self) -> HookedChatModel:
        """The model, loaded when the first stage needs it."""
        if self._model is None:
            c = self.config
            with self.progress("load the model", 0):
                self._model = load_model(
                    c.model, dtype=c.dtype, device=c.device, device_map=c.device_map, system=c.system
                )
        return self._model

    def stage(self, name: str, inputs: list[Any], outputs: dict[str, type[Record]], work: Callable) -> list[Any]:
        """The records of a stage: read if ``inputs`` are those of last time, else made by ``work`` and saved."""
        text = json.dumps([name, metadata.version("refusal-lens"), self.digest, *inputs], sort_keys=True, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()
        mark = self.folder / "stages" / f"{name}.json"
        try:
            if json.loads(mark.read_text())["key"] == key:
                return [load_record(self.folder / file, cls) for file, cls in outputs.items()]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # never finished, or not readable: run it
        made = work()
        for file, record in zip(outputs, made, strict=True):
            record.save(self.folder / file)
        # The mark comes last: a kill before it costs this stage only.
        write_atomically(mark, json.dumps({"key": key}).encode())
        return made


def run_study(
    config: StudyConfig, folder: str | Path, progress: Progress = silent, model: HookedChatModel | None = None
) -> Study:
    """Run the main job, or what is left of it, and render the report.

    Args:
        config: the settings.
        folder: result folder; made when the first stage is done.
        progress: called with a stage's name and its total; gives a context whose value takes steps.
        model: an already loaded model that ``config.model`` names (it is loaded when needed otherwise).

    Raises:
        RefusalLensError: bad input, in one sentence with its remedy.
    """
    runner = _Runner(Path(folder), config, progress)
    runner._model = model
    harmful, harmless = (
        PromptSet.load(source, name, config.sizes, config.seed)
        for source, name in zip(config.sources(), ("harmful", "harmless"), strict=True)
    )
    load = config.model_dump(include={"dtype", "device", "device_map", "system"})
    asked = [load, to_json(harmful), to_json(harmless), list(config.refusal_tokens)]

    def find_tokens() -> list[RefusalTokens]:
        m = runner.model
        if config.refusal_tokens:
            return [given_refusal_tokens(m, config.refusal_tokens)]
        some = harmful.train[:64].texts, harmless.train[:64].texts
        with progress("find the refusal tokens", len(some[0]) + len(some[1])) as advance:
            return [find_refusal_tokens(m, *some, on_batch=advance)]

    (tokens,) = runner.stage("refusal_tokens", asked, {"refusal_tokens": RefusalTokens}, find_tokens)

    def filter_prompts() -> list[PromptSet]:
        with progress("filter the prompts", 0):
            splits = {
                split: keep_refused(runner.model, getattr(harmful, split), getattr(harmless, split), tokens)
                for split in ("train", "val")
            }
        made = []
        for i, prompts in enumerate((harmful, harmless)):
            kept = {split: Prompts(tuple(pair[i])) for split, pair in splits.items()}
            verb = ("refuses", "answers")[i]
            notes = tuple(
                f"{split}: {len(kept[split])} of {len(getattr(prompts, split))} kept, which the model {verb}"
                for split in kept
            )
            made.append(PromptSet(prompts.name, kept["train"], kept["val"], prompts.test, prompts.notes + notes))
        return made

    inputs = [*asked, to_json(tokens)]
    files = {"prompts_harmful": PromptSet, "prompts_harmless": PromptSet}
    harmful, harmless = runner.stage("prompts", inputs, files, filter_prompts)
    inputs = [load, to_json(tokens), to_json(harmful), to_json(harmless)]

    def extract() -> list[CandidateDirections]:
        with progress("extract directions", len(harmful.train) + len(harmless.train)) as advance:
            return [extract_directions(runner.model, harmful.train, harmless.train, advance)]

    (candidates,) = runner.stage("candidates", inputs, {"candidates": CandidateDirections}, extract)

    def select() -> list[Selection]:
        rule = config.rule
        depth = candidates.n_layers if config.full_grid else rule.cut(candidates.n_layers)
        with progress("select the direction", 3 * len(candidates.positions) * depth) as advance:
            chosen = select_direction(
                runner.model,
                candidates,
                harmful.val,
                harmless.val,
                refusal_tokens=tokens,
                rule=rule,
                coeff=config.coeff,
                full_grid=config.full_grid,
                relax=config.relax,
                on_step=advance,
            )
        return [chosen]

    settings = config.model_dump(
        include={"coeff", "max_kl", "min_induce", "layer_cutoff", "relax", "full_grid", "seed"}
    )
    inputs = [*inputs, settings]
    (selection,) = runner.stage("selection", inputs, {"selection": Selection}, select)
    direction = selection.chosen
    needed = necessity_conditions(direction, config.seed + 1)
    enough = sufficiency_conditions(direction, config.seed + 1)

    def trace() -> list[DirectionTrace]:
        with progress("trace the direction", 0):
            sets = {"harmful": harmful.test, "harmless": harmless.test}
            return [trace_direction(runner.model, sets, direction)]

    runner.stage("trace", inputs, {"trace": DirectionTrace}, trace)

    def measure() -> list[Metrics]:
        m, values = runner.model, {}
        with progress("measure the refusal metric", len(needed) + len(enough)) as advance:
            for kind, prompts, conditions in (("harmful", harmful.test, needed), ("harmless", harmless.test, enough)):
                for name, interventions in conditions.items():
                    with m.hooks(*interventions):
                        values[kind, name] = refusal_metric(m, prompts, tokens)
                    advance(1)
        refused = values["harmful", "baseline"] > 0
        return [
            Metrics(
                {name: mean_interval(values["harmful", name][refused].tolist()) for name in needed},
                {name: mean_interval(values["harmful", name].tolist()) for name in needed},
                {name: mean_interval(values["harmless", name].tolist()) for name in enough},
            )
        ]

    (metrics,) = runner.stage("metrics", inputs, {"metrics": Metrics}, measure)

    completions = {}
    for name, prompts, conditions in (("harmful", harmful.test, needed), ("harmless", harmless.test, enough)):

        def answer(name=name, prompts=prompts, conditions=conditions) -> list[Completions]:
            with progress(f"answer {name} prompts", len(prompts) * len(conditions)) as advance:
                return [complete(runner.model, prompts, conditions, name, config.max_new_tokens, on_batch=advance)]

        (completions[name],) = runner.stage(
            f"completions_{name}", [*inputs, config.max_new_tokens], {f"completions_{name}": Completions}, answer
        )

    folder = Path(folder)
    facts = _model_facts(runner)
    provenance = {"schema": SUMMARY_SCHEMA, "model": facts, "settings": config.model_dump(mode="json")}
    provenance |= {"hashes": _hashes(harmful, harmless, runner.digest), "versions": _versions()}
    write_atomically(folder / "study.json", json.dumps(provenance, indent=1, ensure_ascii=False).encode())
    summary = _summary(facts, selection, completions, metrics)
    write_atomically(folder / "summary.json", json.dumps(to_json(summary), indent=1, ensure_ascii=False).encode())
    study = Study(folder)
    with progress("write the report", 0):
        study.report()
    return study


def _summary(
    facts: dict[str, Any], selection: Selection, completions: dict[str, Completions], metrics: Metrics
) -> dict[str, Any]:
    """The stable part of the result (docs/result_folder.md)."""
    chosen = selection.chosen
    return {
        "schema": SUMMARY_SCHEMA,
        "model": facts["name"],
        "direction": {
            "pos": chosen.pos,
            "layer": chosen.layer,
            "norm": chosen.norm,
            "coeff": chosen.coeff,
            "relaxed": chosen.relaxed,
        },
        "scores": {
            **{name: selection.score(name) for name in ("bypass", "induce", "kl")},
            "baseline_harmful": selection.baseline_harmful,
            "baseline_harmless": selection.baseline_harmless,
        },
        "refusal": {name: refusal_rates(replies) for name, replies in completions.items()},
        "refusal_metric": metrics,
    }


def _model_facts(runner: _Runner) -> dict[str, Any]:
    """What the report says of the model; kept from the last run when nothing had to be loaded."""
    known = runner.folder / "model.json"
    if runner._model is None and known.is_file():
        return json.loads(known.read_text())
    m = runner.model
    facts = {
        "name": m.name,
        "fingerprint": m.fingerprint,
        "backend": m.backend.kind,
        "basis": m.basis,
        "dtype": str(m.dtype).removeprefix("torch."),
        "device": str(m.device),
        **{size: getattr(m, size) for size in ("n_layers", "n_heads", "d_model", "d_vocab")},
        "template": m.chat.render("{instruction}"),
    }
    write_atomically(known, json.dumps(facts, indent=1, ensure_ascii=False).encode())
    return facts


def _hashes(harmful: PromptSet, harmless: PromptSet, model: str) -> dict[str, str]:
    def digest(value: Any) -> str:
        return hashlib.sha256(json.dumps(to_json(value), sort_keys=True).encode()).hexdigest()

    return {"model": model, "harmful": digest(harmful), "harmless": digest(harmless)}


def _versions() -> dict[str, str]:
    packages = ("refusal-lens", "transformer-lens", "transformers", "torch", "safetensors", "plotly")
    return {"python": sys.version.split()[0], "platform": platform.platform()} | {
        name: metadata.version(name) for name in packages
    }
