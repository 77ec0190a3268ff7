"""Stages of a study: refusal metric and replies under each condition, and the table of ``refusal-lens evaluate``."""

from collections.abc import Mapping
from typing import Any

from ..data.prompts import PromptSet
from ..engines.stage import Job, Stage, made_elsewhere
from ..refusal.records import Completions, Metrics, RefusalTokens
from ..stats import mean_interval
from .false_refusal_records import OverRefusal
from .records import EvaluationTable
from .section import effect_section, evaluation_section, over_refusal_section


def _conditions(job: Job, selection: Any, candidates: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Conditions for harmful prompts, and for harmless ones; ablation in the form that selected."""
    from ..hooks.conditions import NECESSITY, SUFFICIENCY, named_conditions

    direction, seed = selection.chosen, job.config.seed + 1
    how: Any = {"form": selection.form, "statistics": candidates.statistics}
    return named_conditions(direction, NECESSITY, seed, **how), named_conditions(direction, SUFFICIENCY, seed)


def _metrics(
    job: Job, prompts: tuple[PromptSet, PromptSet], refusal_tokens: RefusalTokens, selection: Any, candidates: Any
) -> Metrics:
    from ..refusal.metric import refusal_metric

    both = list(zip(prompts, _conditions(job, selection, candidates), strict=True))
    with job.progress("measure the refusal metric", sum(len(p.test) * len(named) for p, named in both)) as advance:
        how: Any = {"engine": job.engine, "on_batch": advance}
        harmful, harmless = (
            {name: refusal_metric(job.model, p.test, refusal_tokens, under=x, **how) for name, x in conditions.items()}
            for p, conditions in both
        )
    refused = harmful["baseline"] > refusal_tokens.threshold
    kept = {name: values[refused] for name, values in harmful.items()}
    means = ({k: mean_interval(v.tolist()) for k, v in some.items()} for some in (kept, harmful, harmless))
    return Metrics(*means)


def _replies(kind: int) -> Stage:
    """Replies of the harmful (0) or the harmless (1) test prompts."""
    name = ("harmful", "harmless")[kind]

    def run(job: Job, prompts: tuple[PromptSet, PromptSet], selection: Any, candidates: Any) -> Completions:
        from ..refusal.replies import complete

        conditions, limit = _conditions(job, selection, candidates)[kind], job.config.max_new_tokens
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
    return effect_section(study.completions, study.metrics.harmful, study.metrics.harmless, study.selection.form)


METRICS = Stage("metrics", {"metrics": Metrics}, _metrics, "refusal metric by condition", uses=("seed",))
REPLIES = (_replies(0), _replies(1))
EVALUATION = Stage(
    "evaluation",
    {"evaluation/table": EvaluationTable},
    made_elsewhere,
    "conditions x prompt sets x judges, with replies and verdicts in the same folder",
    command="refusal-lens evaluate",
    section=lambda study: study.evaluation and evaluation_section(study.evaluation),
)
OVER_REFUSAL = Stage(
    "over_refusal",
    {"over_refusal": OverRefusal},
    made_elsewhere,
    "harmless requests that look harmful under every condition; the direction of false refusal",
    command="python -m analyses.over_refusal --study",
    section=lambda study: study.over_refusal and over_refusal_section(study.over_refusal),
)
