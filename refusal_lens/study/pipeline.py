"""The main job: the stages in order, from a chat model to a folder of results."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from ..attribution.causal import causal_check
from ..attribution.logits import compliance_tokens, direct_logit_attribution
from ..attribution.ranking import top_heads
from ..attribution.section import heads_to_show
from ..attribution.sources import attention_patterns, propagation, source_contributions
from ..data.organism import suffixes as embedded_suffixes
from ..data.prompts import Prompts, PromptSet
from ..data.suffixes import SuffixSet
from ..direction.extract import extract_directions
from ..direction.records import CandidateDirections, DirectionTrace, Selection, Stability
from ..direction.select import select_direction
from ..direction.stability import selection_stability
from ..direction.trace import trace_direction
from ..engines.choice import MakeEngine
from ..engines.local import LocalEngine
from ..exactness.identities import certify
from ..exactness.records import Certificate
from ..hijacking.investigation import Settings, investigate
from ..hijacking.records import Investigation
from ..hooks.conditions import necessity_conditions, sufficiency_conditions
from ..models.model import HookedChatModel
from ..progress import Progress, silent
from ..records.base import Record, to_json
from ..records.files import file_digest, locked, write_atomically
from ..refusal.metric import keep_refused, sharded_metric
from ..refusal.records import Completions, Metrics, RefusalTokens
from ..refusal.replies import refusal_rates, sharded_complete
from ..refusal.tokens import find_refusal_tokens, given_refusal_tokens
from ..stats import mean_interval
from .config import StudyConfig
from .folder import ATTACKS, FOLDER_SCHEMA, INSIDE, PARTS, Study
from .runner import Runner

SUMMARY_SCHEMA = 1
N_INSIDE = 32  # prompts that the slower attribution figures read
N_SUFFIX = 48  # refused prompts behind which each suffix is looked at


def run_study(
    config: StudyConfig,
    folder: str | Path,
    progress: Progress = silent,
    model: HookedChatModel | None = None,
    engine: MakeEngine = LocalEngine,
) -> Study:
    """Run the main job, or what is left of it, and render the report.

    Args:
        config: the settings.
        folder: result folder; made when the first stage is done.
        progress: called with a stage's name and its total; gives a context whose value takes steps.
        model: an already loaded model that ``config.model`` names (it is loaded when needed otherwise).
        engine: where sharded work runs (``engines.named_engine``); results do not depend on it.

    The folder is this run's alone meanwhile; a run that was stopped or killed goes on from its last finished stage.

    Raises:
        RefusalLensError: bad input, in one sentence with its remedy; or another run is writing in the folder.
    """
    with locked(Path(folder), PARTS):
        runner = Runner(Path(folder), config, progress, engine)
        try:
            return _run(config, Path(folder), progress, model, runner)
        finally:
            runner.close()


def _run(config: StudyConfig, folder: Path, progress: Progress, model: HookedChatModel | None, runner: Runner) -> Study:
    if model is not None:
        model.check_unhooked()
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
        pairs = {split: (getattr(harmful, split), getattr(harmless, split)) for split in ("train", "val")}
        with progress("filter the prompts", sum(len(p) for pair in pairs.values() for p in pair)) as advance:
            splits = {
                split: keep_refused(runner.model, *pair, tokens, on_batch=advance, engine=runner.engine)
                for split, pair in pairs.items()
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
            return [extract_directions(runner.model, harmful.train, harmless.train, advance, runner.engine)]

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
                engine=runner.engine,
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
        sets = {"harmful": harmful.test, "harmless": harmless.test}
        with progress("trace the direction", len(sets) * min(map(len, sets.values()))) as advance:
            return [trace_direction(runner.model, sets, direction, on_batch=advance)]

    runner.stage("trace", inputs, {"trace": DirectionTrace}, trace)

    def measure() -> list[Metrics]:
        values = {}
        total = len(needed) * len(harmful.test) + len(enough) * len(harmless.test)
        with progress("measure the refusal metric", total) as advance:
            for kind, prompts, conditions in (("harmful", harmful.test, needed), ("harmless", harmless.test, enough)):
                for name, interventions in conditions.items():
                    values[kind, name] = sharded_metric(runner.engine, prompts, tokens, interventions, on_batch=advance)
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
                limit = config.max_new_tokens
                return [sharded_complete(runner.engine, prompts, conditions, name, limit, on_batch=advance)]

        (completions[name],) = runner.stage(
            f"completions_{name}", [*inputs, config.max_new_tokens], {f"completions_{name}": Completions}, answer
        )

    def look_inside() -> list[Record]:
        m, test = runner.model, harmful.test.texts
        some, contrast = test[:N_INSIDE], harmless.test.texts
        with progress("attribute heads, logits and tokens", 6) as advance:
            # Chosen on validation prompts, reported on test prompts.
            heads = top_heads(m, harmful.val.texts, test, direction, contrast=contrast, top=min(8, m.n_heads))
            advance(1)
            causal = causal_check(m, some, contrast[:N_INSIDE], direction, heads, tokens)
            advance(1)
            against = compliance_tokens(m, harmless.val.texts, tokens)
            logits = direct_logit_attribution(m, test, tokens, against)
            advance(1)
            moved = propagation(m, some, direction)
            advance(1)
            sources = source_contributions(m, some, direction)
            advance(1)
            shown = heads_to_show(heads, len(sources.tokens[0]))
            patterns = attention_patterns(m, test[0], shown)
            advance(1)
        return [heads, causal, logits, moved, sources, patterns]

    def choose_again() -> list[Stability]:
        train, val = ((getattr(harmful, split).texts, getattr(harmless, split).texts) for split in ("train", "val"))
        with progress("draw the training prompts again", config.stability) as advance:
            return [
                selection_stability(
                    runner.model, train, val, tokens, resamples=config.stability, rule=config.rule, on_step=advance
                )
            ]

    if config.stability:
        runner.stage("stability", [*inputs, config.stability], {"stability": Stability}, choose_again)

    if config.attribution:
        parts = {f"inside/{name}": kind for name, kind in INSIDE.items()}
        runner.stage("inside", inputs, parts, look_inside)

    if config.suffixes is not None:
        suffixes = SuffixSet.load(embedded_suffixes() if config.suffixes == "organism" else config.suffixes)
        chosen: dict[str, Any] = {
            "prompts": N_SUFFIX,
            "max_new_tokens": min(config.max_new_tokens, 24),
            "seed": config.seed,
        }

        def look_at_suffixes() -> list[Investigation]:
            return [
                investigate(
                    runner.model,
                    harmful,
                    suffixes,
                    direction,
                    harmless=harmless.test.texts[:N_SUFFIX],
                    refusal_tokens=tokens,
                    settings=Settings(**chosen),
                    folder=folder / ATTACKS,
                    progress=progress,
                )
            ]

        key = [*inputs, to_json(suffixes), chosen]
        runner.stage("suffixes", key, {f"{ATTACKS}/report": Investigation}, look_at_suffixes)

    def certificate() -> list[Certificate]:
        with progress("certify", 0):
            return [certify(runner.model, direction=direction)]

    runner.stage("certificate", inputs, {"certificate": Certificate}, certificate)

    facts = runner.document("model", [load], lambda: _model_facts(runner.model))
    runner.tidy()
    summary = _summary(facts, selection, completions, metrics)
    write_atomically(folder / "summary.json", json.dumps(to_json(summary), indent=1, ensure_ascii=False).encode())
    written = runner.files | {"summary.json": file_digest(folder / "summary.json")}
    provenance = {"schema": FOLDER_SCHEMA, "model": facts, "settings": config.model_dump(mode="json")}
    provenance |= {"hashes": _hashes(harmful, harmless, runner.digest), "versions": _versions()}
    provenance |= {"files": dict(sorted(written.items()))}
    write_atomically(folder / "study.json", json.dumps(provenance, indent=1, ensure_ascii=False).encode())
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


def _model_facts(m: HookedChatModel) -> dict[str, Any]:
    """What the report says of the model."""
    return {
        "name": m.name,
        "fingerprint": m.fingerprint,
        "backend": m.backend.kind,
        "basis": m.basis,
        "dtype": str(m.dtype).removeprefix("torch."),
        "device": str(m.device),
        **{size: getattr(m, size) for size in ("n_layers", "n_heads", "d_model", "d_vocab")},
        "template": m.chat.render("{instruction}"),
    }


def _hashes(harmful: PromptSet, harmless: PromptSet, model: str) -> dict[str, str]:
    def digest(value: Any) -> str:
        return hashlib.sha256(json.dumps(to_json(value), sort_keys=True).encode()).hexdigest()

    return {"model": model, "harmful": digest(harmful), "harmless": digest(harmless)}


def _versions() -> dict[str, str]:
    packages = ("refusal-lens", "transformer-lens", "transformers", "torch", "safetensors", "plotly")
    return {"python": sys.version.split()[0], "platform": platform.platform()} | {
        name: metadata.version(name) for name in packages
    }
