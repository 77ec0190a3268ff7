"""Stages of a study: candidates, selection, trace, maps of two conversations, stability."""

from dataclasses import replace
from typing import Any

from ..data.prompts import PromptPair, PromptSet
from ..engines.stage import Job, Stage, made_elsewhere
from ..refusal.records import Completions, RefusalTokens
from .cone_records import GroupAngles, Independence, LearnedCones, SubspaceEffects
from .cone_section import cones_section, subspace_section
from .dose_records import DoseResponse
from .effect_records import AblationForms, EffectMatrix
from .harm_records import HarmMap
from .map_records import ConversationMap
from .massive_section import ablations_section
from .records import CandidateDirections, DirectionTrace, FoundDirection, Selection, Stability
from .section import conversations_section, direction_section, dose_section, harm_section

Pair = tuple[PromptSet, PromptSet]
STRENGTH_PROMPTS, STRENGTH_TOKENS = 16, 24  # of each kind; of a reply
REPLIES_AT = (0.5, 1.0)
RULE = ("max_kl", "min_induce", "layer_cutoff")


def _rule(job: Job, tokens: RefusalTokens) -> Any:
    from .select import SelectionRule

    config = job.config
    least = tokens.threshold if config.min_induce is None else config.min_induce
    return SelectionRule(config.max_kl, least, config.layer_cutoff)


def _candidates(job: Job, prompts: Pair) -> CandidateDirections:
    from .extract import extract_directions

    return extract_directions(job.model, *prompts, progress=job.progress, engine=job.engine)


def _selection(job: Job, candidates: CandidateDirections, prompts: Pair, refusal_tokens: RefusalTokens) -> Selection:
    from .select import select_direction

    config, rule = job.config, _rule(job, refusal_tokens)
    how: Any = {"coeff": config.coeff, "full_grid": config.full_grid, "relax": config.relax, "form": config.ablation}
    how |= {"rule": rule, "progress": job.progress, "engine": job.engine}
    return select_direction(job.model, candidates, *prompts, refusal_tokens=refusal_tokens, **how)


def _trace(job: Job, selection: Selection, prompts: Pair) -> DirectionTrace:
    from .trace import trace_direction

    sets = {"harmful": prompts[0].test, "harmless": prompts[1].test}
    return trace_direction(job.model, sets, selection.chosen, job.progress)


def _conversations(
    job: Job,
    selection: Selection,
    candidates: CandidateDirections,
    prompts: Pair,
    completions_harmful: Completions,
    completions_harmless: Completions,
) -> tuple[ConversationMap, ...]:
    """The first test prompt of each kind with its replies."""
    from ..hooks.conditions import named_conditions
    from .conversation import read

    how: Any = {"form": selection.form, "statistics": candidates.statistics}
    maps = []
    for kind, said in zip(prompts, (completions_harmful, completions_harmless), strict=True):
        under = named_conditions(selection.chosen, said.conditions, job.config.seed + 1, **how)
        replies = {name: said.of(name)[0].response for name in under}
        text, direction = kind.test.texts[0], selection.chosen
        maps.append(read(job.model, text, direction, reply=replies, under=under, progress=job.progress))
    return tuple(maps)


def _harm(
    job: Job,
    prompts: Pair,
    refusal_tokens: RefusalTokens,
    candidates: CandidateDirections,
    selection: Selection,
    completions_harmful: Completions,
    completions_harmless: Completions,
) -> tuple[HarmMap, EffectMatrix, EffectMatrix]:
    from .harm import harm_effects, harm_map

    data, found = PromptPair(*prompts), FoundDirection(selection, candidates, refusal_tokens)
    sides = {"harmful": completions_harmful, "harmless": completions_harmless}
    refused = {name: [reply.refused for reply in said.of("baseline")] for name, said in sides.items()}
    record = harm_map(job.model, data, found, refused=refused, progress=job.progress)
    return record, *harm_effects(job.model, data, record, refusal_tokens, job.config.seed + 1)


def _strengths(
    job: Job, prompts: Pair, refusal_tokens: RefusalTokens, candidates: CandidateDirections, selection: Selection
) -> DoseResponse:
    from .dose import STRENGTHS, Scope, dose_response

    data = PromptPair(*(replace(kind, test=kind.test[:STRENGTH_PROMPTS]) for kind in prompts))
    found = FoundDirection(selection, candidates, refusal_tokens)
    how: Any = {"strengths": {effect: STRENGTHS[effect] for effect in ("ablation", "addition")}}
    how |= {"scopes": {"all": Scope()}, "replies_at": REPLIES_AT, "max_new_tokens": STRENGTH_TOKENS}
    how |= {"seed": job.config.seed + 1, "progress": job.progress, "engine": job.engine}
    return dose_response(job.model, data, found, **how)


def _stability(job: Job, prompts: Pair, refusal_tokens: RefusalTokens) -> Stability:
    from .stability import selection_stability

    how: Any = {"rule": _rule(job, refusal_tokens), "progress": job.progress}
    return selection_stability(job.model, *prompts, refusal_tokens, resamples=job.config.stability, **how)


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
    section=lambda study: direction_section(study.selection, study.candidates, study.stability, study.ablations),
)
TRACE = Stage("trace", {"trace": DirectionTrace}, _trace, "cosine and projection by layer, per prompt")
CONVERSATIONS = Stage(
    "conversations",
    {"conversations/harmful": ConversationMap, "conversations/harmless": ConversationMap},
    _conversations,
    "every token of one conversation of each kind on the direction, by layer and condition",
    uses=("seed",),
    optional=True,
    section=lambda study: study.conversations and conversations_section(study.conversations),
)
HARM = Stage(
    "harm",
    {"harm/map": HarmMap, "harm/ablation": EffectMatrix, "harm/addition": EffectMatrix},
    _harm,
    "harmfulness at the end of the user's turn beside refusal, by prompt and layer; cross-effects of both directions",
    uses=("seed",),
    optional=True,
    section=lambda study: study.harm and harm_section(*study.harm),
)
STRENGTHS = Stage(
    "strengths",
    {"strengths": DoseResponse},
    _strengths,
    "effect and damage by strength at all positions, on test prompts; replies at two strengths",
    uses=("seed",),
    optional=True,
    section=lambda study: study.strengths and dose_section(study.strengths, "strengths", "How strong"),
)
STABILITY = Stage(
    "stability",
    {"stability": Stability},
    _stability,
    "the selection over resampled training prompts (`--stability`)",
    uses=(*RULE, "stability"),
    when="stability",
    optional=True,
)
DOSE = Stage(
    "dose",
    {"dose": DoseResponse},
    made_elsewhere,
    "effect and damage by strength and scope, on validation prompts",
    command="python -m analyses.dose --study",
    section=lambda study: study.dose and dose_section(study.dose, "dose", "How much, and where"),
)
CONES = Stage(
    "cones",
    {
        "cones/effects": SubspaceEffects,
        "cones/direction": LearnedCones,
        "cones/cone": LearnedCones,
        "cones/independence": Independence,
    },
    made_elsewhere,
    "a direction and a cone learned by gradient beside the difference in means, and their independence",
    command="python -m analyses.cones --study",
    section=lambda study: study.cones and cones_section(study.cones[0], study.cones[1:3], study.cones[3]),
)
SUBSPACES = Stage(
    "subspaces",
    {
        "subspaces/effects": SubspaceEffects,
        "subspaces/categories": GroupAngles,
        "subspaces/languages": GroupAngles,
        "subspaces/transfer": EffectMatrix,
    },
    made_elsewhere,
    "effect by number of directions; angles between categories of harm and between languages",
    command="python -m analyses.subspace --study",
    section=lambda study: study.subspaces and subspace_section(*study.subspaces),
)
ABLATIONS = Stage(
    "ablations",
    {"ablations": AblationForms},
    made_elsewhere,
    "every form of ablation beside its placebos, and the recommended one",
    command="refusal-lens ablations",
    section=lambda study: study.ablations and ablations_section(study.ablations),
)
