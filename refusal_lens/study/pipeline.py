"""The end-to-end study: the stages in order, from a chat model to a folder of results."""

import dataclasses
import datetime
import math
import platform
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from ..data.organism import suffixes as embedded_suffixes
from ..data.prompts import SPLITS, load_prompts
from ..data.suffixes import SuffixSet
from ..engines.base import Engine
from ..engines.local import LocalEngine, MakeEngine
from ..engines.stage import Job, Stage
from ..errors import DirectionError, ModelError, PromptError, ResultError
from ..models.counting import FORWARDS
from ..models.load import check_source, load_model, source_digest
from ..models.model import HookedChatModel
from ..models.template import template_text
from ..progress import Progress, automatic, silent
from ..records.files import file_digest, locked, plain_json, write_json
from ..records.store import UNREADABLE, Store, content_key
from ..refusal.tokens import given_refusal_tokens
from .config import LOADING, StudyConfig
from .folder import FOLDER_SCHEMA, SECONDS, Cost, Study, load_file, save_file, stage_costs
from .stages import BY_NAME, FOLDERS, planned

SUMMARY_SCHEMA = 1
WHOLE = ("report.html", "summary.json", "study.json")  # what describes the folder as a whole
ROOM = 20_000_000  # bytes: about what a study of a small model leaves
PACKAGES = ("refusal-lens", "transformer-lens", "transformers", "torch", "safetensors", "plotly")


def run_study(
    config: StudyConfig,
    folder: str | Path,
    progress: Progress = automatic,
    model: HookedChatModel | None = None,
    engine: MakeEngine = LocalEngine,
) -> Study:
    """Run the study, resuming after its last finished stage, and render the report.

    Args:
        folder: made when the first stage is done; only one run at a time writes in it.
        model: the model that ``config.model`` names, if already loaded (otherwise it is loaded when needed).
        engine: where sharded work runs (``engines.local.named_engine``); results do not depend on it.

    Raises:
        RefusalLensError: invalid input, in one sentence with the remedy; or another run is writing in the folder.
    """
    with locked(Path(folder), FOLDERS), closing(_Run(config, Path(folder), progress, model, engine)) as run:
        run.stages(tuple(planned(config)))
        return run.finish()


def run_stage(
    name: str,
    config: StudyConfig,
    folder: str | Path,
    progress: Progress = automatic,
    model: HookedChatModel | None = None,
    engine: MakeEngine = LocalEngine,
) -> Any:
    """Run one stage and what it needs, resuming as ``run_study`` does.

    Args:
        name: of the stage ("selection", ...); the others are as in ``run_study``.

    Returns:
        The stage's record, or a tuple of records where it makes several.

    Raises:
        SettingError: there is no such stage, or the settings leave it out.
        ModelError: the model lacks what the stage needs.

    Example:
        >>> config = rl.StudyConfig(sizes=(48, 12, 12))
        >>> rl.study.run_stage("refusal_tokens", config, "runs/small").texts
        ('I',)
    """
    stages = tuple(planned(config, name))
    with locked(Path(folder), FOLDERS), closing(_Run(config, Path(folder), progress, model, engine)) as run:
        run.stages(stages)
        if missing := run.done[name].missing:
            raise ModelError(missing)
        return run.records(BY_NAME[name])


@dataclass(frozen=True)
class StageState:
    """State of a stage in a result folder."""

    name: str
    state: str  # "done", "to do", or why the model can't have it
    seconds: float  # that it took, NaN if unknown
    passes: float  # forward passes that it made, likewise
    tokens: float  # positions in them, padding included
    settings: Mapping[str, Any]  # it was made from; empty if it was never made
    changed: tuple[str, ...] = ()  # settings that differ now, as "name: then -> now"


def stage_states(config: StudyConfig, folder: str | Path) -> tuple[StageState, ...]:
    """Say which stages in ``folder`` a run with ``config`` would reuse, and which it would run; no model is
    loaded."""
    run = _Run(config, Path(folder))
    states, costs = [], stage_costs(run.folder)
    for stage in planned(config):
        mark = run.mark(stage)
        kept = run.store.get(f"stages/{stage.name}", None)
        kept = kept if isinstance(kept, dict) else {}
        then, now = kept.get("settings", {}), run.settings(stage)
        changed = tuple(f"{k}: {then[k]} -> {v}" for k, v in plain_json(now).items() if k in then and then[k] != v)
        state = "to do" if mark is None else mark.missing or "done"
        states.append(StageState(stage.name, state, *costs.get(stage.name, Cost()), then, changed))
        if mark is not None:
            run.done[stage.name] = mark
    return tuple(states)


@dataclass
class _Mark:
    """Mark of a finished stage: SHA-256 by file, why the model can't have it, and its records once they are loaded."""

    files: dict[str, str]
    missing: str = ""
    records: tuple[Any, ...] | None = None


@dataclass
class _Run(Job):
    """One run into a folder."""

    config: StudyConfig
    folder: Path
    progress: Progress = silent
    given_model: HookedChatModel | None = None
    make_engine: MakeEngine = LocalEngine

    def __post_init__(self) -> None:
        if self.given_model is not None:
            self.given_model.check_unhooked()
        self.store = Store(self.folder)
        self.digest = source_digest(self.config.model)
        self.template = template_text(self.config.chat_template)
        # The day on which the study began: a template that prints it gives the same tokens when it is resumed.
        self.date = self.config.date or self.store.get("stages/date", None) or datetime.date.today().isoformat()
        self.done: dict[str, _Mark] = {}
        self.made_engine: Engine | None = None
        self.items = Store(None), ""
        self.inputs: dict[str, Any] = {}

    @cached_property
    def model(self) -> HookedChatModel:  # type: ignore[override]
        """The model, loaded when the first stage needs it."""
        if self.given_model is not None:
            return self.given_model
        c = self.config
        with self.progress("load the model", 0):
            return load_model(c.model, **{name: getattr(c, name) for name in LOADING} | {"date": self.date})

    @property
    def engine(self) -> Engine:
        """Where sharded work runs, made when the first stage needs it."""
        if self.made_engine is None:
            self.made_engine = self.make_engine(self.model)
            self.made_engine.keep(*self.items)
        return self.made_engine

    def input(self, name: str) -> Any:
        """Prompts or suffixes, read once."""
        if name not in self.inputs:
            c = self.config
            if name == "prompts":
                self.inputs[name] = tuple(load_prompts(*c.sources(), sizes=c.sizes, seed=c.seed))
            else:
                source = embedded_suffixes() if c.suffixes == "organism" else str(c.suffixes)
                self.inputs[name] = SuffixSet.load(source)
        return self.inputs[name]

    def close(self) -> None:
        """Release what the engine holds."""
        if self.made_engine is not None:
            self.made_engine.close()

    def settings(self, stage: Stage) -> dict[str, Any]:
        """Settings that decide the stage's result."""
        return {name: getattr(self.config, name) for name in stage.uses}

    def key(self, stage: Stage) -> str:
        """Content key of a stage whose needs are done."""
        c = self.config
        model = [self.digest, *(getattr(c, name) for name in LOADING), self.date, self.template]
        needs = {name: self.done[name].files for name in stage.needs}
        inputs = [self.input(name) for name in stage.inputs]
        return content_key(stage.name, stage.version, self.settings(stage), model, needs, inputs)

    def mark(self, stage: Stage) -> _Mark | None:
        """Mark of the stage for the current inputs; None if it must run."""
        if any(name not in self.done for name in stage.needs):
            return None
        found = self.store.get(f"stages/{stage.name}", self.key(stage))
        with suppress(*UNREADABLE):
            # The files' own hashes: a run with other settings may have replaced them and died before its mark.
            if found and all(file_digest(self.folder / f) == digest for f, digest in found["files"].items()):
                return _Mark(found["files"], found["missing"])
        return None

    def records(self, stage: Stage) -> Any:
        """The record of a finished stage, a tuple where it makes several, None where the model can't have it."""
        mark = self.done[stage.name]
        if mark.missing:
            return None
        if mark.records is None:
            mark.records = tuple(load_file(self.folder / file, kind) for file, kind in stage.makes.items())
        return mark.records if len(mark.records) > 1 else mark.records[0]

    def stages(self, stages: tuple[Stage, ...]) -> None:
        """Run those that are not done yet."""
        if self.given_model is None and self.store.get("stages/date", None) is None:
            check_source(self.config.model)  # before data sets are fetched
        for name in dict.fromkeys(name for stage in stages for name in stage.inputs):
            self.input(name)  # a bad file is an error now, not after hours
        checked = False
        for stage in stages:
            mark = self.mark(stage)
            if mark is not None:
                self.done[stage.name] = mark
                with suppress(*UNREADABLE):
                    self.records(stage)
                    continue
            if not checked:
                self._check()
                checked = True
            self.done[stage.name] = self._run(stage)

    def _check(self) -> None:
        """Check all that the run takes from its inputs before the first forward pass."""
        place = next(p for p in (self.folder.resolve(), *self.folder.resolve().parents) if p.exists())
        if (free := shutil.disk_usage(place).free) < ROOM:
            raise ResultError(f"{place} has {free / 1e6:.0f} of the {ROOM / 1e6:.0f} MB a study needs: free some space")
        model, new = self.model, self.config.max_new_tokens
        if self.config.refusal_tokens:
            given_refusal_tokens(model, self.config.refusal_tokens)
        for prompts in self.inputs.get("prompts", ()):
            for split in SPLITS:
                texts = getattr(prompts, split)
                lengths = model.chat.tokenize(texts).lengths
                longest, over = int(lengths.argmax()), int((lengths + new > (model.n_ctx or math.inf)).sum())
                if over:
                    raise PromptError(
                        f"{over} {prompts.name} {split} prompt(s) do not fit in {model.name}'s {model.n_ctx} tokens: "
                        f"{texts[longest][:60]!r} has {int(lengths[longest])} and its reply up to {new}; leave "
                        "them out, or lower max_new_tokens"
                    )

    def _run(self, stage: Stage) -> _Mark:
        begin, before, key = time.monotonic(), FORWARDS.copy(), self.key(stage)
        items = self.store.part(f"items/{stage.name}")
        self.items = items, key
        if self.made_engine is not None:
            self.made_engine.keep(*self.items)
        lacks = next((name for name in stage.needs if self.done[name].missing), None)
        records: tuple[Any, ...] | None = None
        missing = f"it takes the stage {lacks!r}, which this model can't have" if lacks else ""
        if not missing:
            try:
                made = stage.run(self, *(self.records(BY_NAME[name]) for name in stage.needs))
                records = made if len(stage.makes) > 1 else (made,)
            except (ModelError, DirectionError, NotImplementedError) as error:
                if not stage.optional:
                    raise
                missing = str(error) or "the model does not implement what this stage takes"
        for name in WHOLE:  # before a record in the folder changes
            (self.folder / name).unlink(missing_ok=True)
        paths = [
            save_file(self.folder / file, record) for file, record in zip(stage.makes, records or (), strict=False)
        ]
        files = {path.relative_to(self.folder).as_posix(): file_digest(path) for path in paths}
        took = Cost(round(time.monotonic() - begin, 3), *(FORWARDS[n] - before[n] for n in ("passes", "tokens")))
        costs = {name: cost._asdict() for name, cost in (stage_costs(self.folder) | {stage.name: took}).items()}
        write_json(self.folder / SECONDS, plain_json(costs))
        self.store.put("stages/date", self.date)
        # The mark comes last: a kill before it costs this stage only.
        mark = {"files": files, "missing": missing, "settings": plain_json(self.settings(stage))}
        self.store.put(f"stages/{stage.name}", mark, key)
        items.clear()
        return _Mark(files, missing, records)

    def finish(self) -> Study:
        """Summary, provenance (last) and report."""
        self.store.part("items").clear()  # of a run killed after its mark, or one with other settings
        facts, prompts = (self.records(BY_NAME[name]) for name in ("model", "prompts"))
        write_json(self.folder / "summary.json", plain_json(self._summary()))
        files = {file: digest for mark in self.done.values() for file, digest in mark.files.items()}
        files["summary.json"] = file_digest(self.folder / "summary.json")
        hashes = {p.name: content_key(p) for p in prompts}
        versions = {"python": sys.version.split()[0], "platform": platform.platform()}
        versions |= {name: metadata.version(name) for name in PACKAGES}
        write_json(
            self.folder / "study.json",
            {
                "schema": FOLDER_SCHEMA,
                "model": facts,
                "settings": dataclasses.asdict(self.config),
                "hashes": {"model": self.digest, **hashes},
                "versions": versions,
                "missing": {name: mark.missing for name, mark in self.done.items() if mark.missing},
                "files": dict(sorted(files.items())),
            },
        )
        study = Study(self.folder)
        with self.progress("write the report", 0):
            study.report()
        return study

    def _summary(self) -> dict[str, Any]:
        """The stable part of the result (docs/result_folder.md)."""
        facts, selection, metrics = (self.records(BY_NAME[name]) for name in ("model", "selection", "metrics"))
        replies = {kind: self.records(BY_NAME[f"completions_{kind}"]) for kind in ("harmful", "harmless")}
        chosen = {name: getattr(selection.chosen, name) for name in ("pos", "layer", "norm", "coeff", "relaxed")}
        scores = {name: selection.score(name) for name in ("bypass", "induce", "kl")}
        prompts, calibration = self.records(BY_NAME["prompts"]), self.records(BY_NAME["refusal_tokens"]).calibration
        point = calibration and {n: getattr(calibration, n) for n in ("point", "threshold", "above", "below")}
        baselines = {name: getattr(selection, name) for name in ("baseline_harmful", "baseline_harmless")}
        return {
            "schema": SUMMARY_SCHEMA,
            "model": facts["name"],
            "direction": chosen,
            "scores": scores | baselines,
            "prompts": {p.name: {split: len(getattr(p, split)) for split in SPLITS} for p in prompts},
            "filter": point,
            "refusal": {kind: found.rates for kind, found in replies.items()},
            "refusal_metric": metrics,
        }
