"""Stages of a study: candidates, selection, trace, stability."""

from typing import Any

from ..data.prompts import PromptSet
from ..engines.stage import Job, Stage, made_elsewhere
from ..refusal.records import RefusalTokens
from .ablation_records import AblationForms
from .massive_section import ablations_section
from .records import CandidateDirections, DirectionTrace, Selection, Stability
from .rule import SelectionRule
from .section import direction_section

Pair = tuple[PromptSet, PromptSet]
RULE = ("max_kl", "min_induce", "layer_cutoff")


def _rule(job: Job, tokens: RefusalTokens) -> SelectionRule:
    config = job.config
    least = tokens.threshold if config.min_induce is None else config.min_induce
    return SelectionRule(config.max_kl, least, config.layer_cutoff)


def _candidates(job: Job, prompts: Pair) -> CandidateDirections:
    from .extract import extract_directions

    return extract_directions(job.model, *prompts, progress=job.progress, engine=job.engine)


def _selection(job: Job, candidates: CandidateDirections, prompts: Pair, refusal_tokens: RefusalTokens) -> Selection:
    from .select import select_direction

    return select_direction(
        job.model,
        candidates,
        *prompts,
        refusal_tokens=refusal_tokens,
        rule=_rule(job, refusal_tokens),
        coeff=job.config.coeff,
        full_grid=job.config.full_grid,
        relax=job.config.relax,
        form=job.config.ablation,
        progress=job.progress,
        engine=job.engine,
    )


def _trace(job: Job, selection: Selection, prompts: Pair) -> DirectionTrace:
    from .trace import trace_direction

    sets = {"harmful": prompts[0].test, "harmless": prompts[1].test}
    return trace_direction(job.model, sets, selection.chosen, job.progress)


def _stability(job: Job, prompts: Pair, refusal_tokens: RefusalTokens) -> Stability:
    from .stability import selection_stability

    n, rule = job.config.stability, _rule(job, refusal_tokens)
    return selection_stability(job.model, *prompts, refusal_tokens, resamples=n, rule=rule, progress=job.progress)


def _section(study: Any) -> Any:
    return direction_section(study.selection, study.candidates, study.stability, study.ablations)


CANDIDATES = Stage(
    "candidates",
    {"candidates": CandidateDirections},
    _candidates,
    "mean differences at all positions and layers, float64; the stream's statistics and massive tokens",
)
SELECTION = Stage(
    "selection",
    {"selection": Selection},
    _selection,
    "scores, reasons, the chosen direction",
    uses=(*RULE, "coeff", "relax", "full_grid", "ablation"),
    section=_section,
)
TRACE = Stage("trace", {"trace": DirectionTrace}, _trace, "cosine and projection by layer, per prompt")
STABILITY = Stage(
    "stability",
    {"stability": Stability},
    _stability,
    "the selection over resampled training prompts (`--stability`)",
    uses=(*RULE, "stability"),
    when="stability",
    optional=True,
)
ABLATIONS = Stage(
    "ablations",
    {"ablations": AblationForms},
    made_elsewhere,
    "every form of ablation beside its placebos, and the recommended one",
    command="refusal-lens ablations",
    section=lambda study: study.ablations and ablations_section(study.ablations),
)
