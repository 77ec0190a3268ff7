"""Stages of a study: refusal metric and replies under each condition, and the table of ``refusal-lens evaluate``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..data.prompts import PromptSet
from ..engines.stage import Job, Stage, made_elsewhere
from ..refusal.records import Completions, Metrics, RefusalTokens
from ..stats import mean_interval
from .records import EvaluationTable
from .section import effect_section, evaluation_section


def _conditions(job: Job, selection: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Conditions for harmful prompts, and for harmless ones."""
    from ..hooks.conditions import NECESSITY, SUFFICIENCY, named_conditions

    direction, seed = selection.chosen, job.config.seed + 1
    return named_conditions(direction, NECESSITY, seed), named_conditions(direction, SUFFICIENCY, seed)


def _metrics(job: Job, prompts: tuple[PromptSet, PromptSet], refusal_tokens: RefusalTokens, selection: Any) -> Metrics:
    from ..refusal.metric import refusal_metric

    harmful, harmless = (p.test for p in prompts)
    needed, enough = _conditions(job, selection)
    values = {}
    total = len(needed) * len(harmful) + len(enough) * len(harmless)
    with job.progress("measure the refusal metric", total) as advance:
        for kind, texts, conditions in (("harmful", harmful, needed), ("harmless", harmless, enough)):
            for name, interventions in conditions.items():
                values[kind, name] = refusal_metric(
                    job.model, texts, refusal_tokens, under=interventions, engine=job.engine, on_batch=advance
                )
    refused = values["harmful", "baseline"] > 0
    return Metrics(
        {name: mean_interval(values["harmful", name][refused].tolist()) for name in needed},
        {name: mean_interval(values["harmful", name].tolist()) for name in needed},
        {name: mean_interval(values["harmless", name].tolist()) for name in enough},
    )


def _replies(kind: int) -> Stage:
    """Replies of the harmful (0) or the harmless (1) test prompts."""
    name = ("harmful", "harmless")[kind]

    def run(job: Job, prompts: tuple[PromptSet, PromptSet], selection: Any) -> Completions:
        from ..refusal.replies import complete

        conditions, limit = _conditions(job, selection)[kind], job.config.max_new_tokens
        texts = prompts[kind].test
        return complete(job.model, texts, conditions, name, limit, engine=job.engine, progress=job.progress)

    return Stage(
        f"completions_{name}",
        {f"completions_{name}": Completions},
        run,
        f"replies to {name} prompts by condition, with verdicts",
        uses=("seed", "max_new_tokens"),
        section=_effects if kind else None,
    )


def _effects(study: Any) -> Any:
    return effect_section(study.completions, study.metrics.harmful, study.metrics.harmless)


METRICS = Stage("metrics", {"metrics": Metrics}, _metrics, "refusal metric by condition", uses=("seed",))
REPLIES = (_replies(0), _replies(1))
EVALUATION = Stage(
    "evaluation",
    {"evaluation/table": EvaluationTable},
    made_elsewhere,
    "conditions x prompt sets x judges; replies and verdicts beside it",
    command="refusal-lens evaluate",
    section=lambda study: study.evaluation and evaluation_section(study.evaluation),
)
