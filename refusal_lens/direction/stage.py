"""Stages of a study: candidates, selection, trace, stability."""

from __future__ import annotations

from typing import Any

from ..data.prompts import PromptSet
from ..engines.stage import Job, Stage
from ..refusal.records import RefusalTokens
from .records import CandidateDirections, DirectionTrace, Selection, Stability
from .rule import SelectionRule
from .section import direction_section

Pair = tuple[PromptSet, PromptSet]
RULE = ("max_kl", "min_induce", "layer_cutoff")


def _rule(job: Job) -> SelectionRule:
    return SelectionRule(*(getattr(job.config, name) for name in RULE))


def _candidates(job: Job, prompts: Pair) -> CandidateDirections:
    from .extract import extract_directions

    harmful, harmless = prompts
    with job.progress("extract directions", len(harmful.train) + len(harmless.train)) as advance:
        return extract_directions(job.model, harmful.train, harmless.train, advance, job.engine)


def _selection(job: Job, candidates: CandidateDirections, prompts: Pair, refusal_tokens: RefusalTokens) -> Selection:
    from .select import select_direction

    config, rule = job.config, _rule(job)
    harmful, harmless = prompts
    depth = candidates.n_layers if config.full_grid else rule.cut(candidates.n_layers)
    with job.progress("select the direction", 3 * len(candidates.positions) * depth) as advance:
        return select_direction(
            job.model,
            candidates,
            harmful.val,
            harmless.val,
            refusal_tokens=refusal_tokens,
            rule=rule,
            coeff=config.coeff,
            full_grid=config.full_grid,
            relax=config.relax,
            on_step=advance,
            engine=job.engine,
        )


def _trace(job: Job, selection: Selection, prompts: Pair) -> DirectionTrace:
    from .trace import trace_direction

    sets = {"harmful": prompts[0].test, "harmless": prompts[1].test}
    with job.progress("trace the direction", len(sets) * min(map(len, sets.values()))) as advance:
        return trace_direction(job.model, sets, selection.chosen, on_batch=advance)


def _stability(job: Job, prompts: Pair, refusal_tokens: RefusalTokens) -> Stability:
    from .stability import selection_stability

    harmful, harmless = prompts
    n = job.config.stability
    train, val = (harmful.train.texts, harmless.train.texts), (harmful.val.texts, harmless.val.texts)
    with job.progress("draw the training prompts again", n) as advance:
        return selection_stability(job.model, train, val, refusal_tokens, resamples=n, rule=_rule(job), on_step=advance)


def _section(study: Any) -> Any:
    return direction_section(study.selection, study.candidates, study.stability)


CANDIDATES = Stage(
    "candidates",
    {"candidates": CandidateDirections},
    _candidates,
    "mean differences at all positions and layers, float64",
)
SELECTION = Stage(
    "selection",
    {"selection": Selection},
    _selection,
    "scores, reasons, the chosen direction",
    uses=(*RULE, "coeff", "relax", "full_grid"),
    section=_section,
)
TRACE = Stage("trace", {"trace": DirectionTrace}, _trace, "cosine and projection by layer, per prompt")
STABILITY = Stage(
    "stability",
    {"stability": Stability},
    _stability,
    "the selection over other draws of the training prompts (`--stability`)",
    uses=(*RULE, "stability"),
    when="stability",
    optional=True,
)
