"""Stages of a study: what writes the direction, its logits and its source tokens."""

from typing import Any

from ..data.prompts import PromptSet
from ..direction.records import CandidateDirections, Selection
from ..engines.stage import Job, Stage
from ..records.labels import Head
from ..refusal.records import RefusalTokens
from .causal_records import CausalCheck
from .records import DirectLogitAttribution, TopHeads
from .section import Inside, inside_section
from .token_records import AttentionPatterns, Lens, Propagation, SourceContributions

Pair = tuple[PromptSet, PromptSet]
TOP = 8  # heads, as in the paper; as many as a layer has where it has fewer
# Whole attention patterns that are kept: of the strongest heads, as many as fit (about 3 MB of a page).
PATTERN_CELLS, PATTERN_TOKENS, PATTERN_HEADS = 60_000, 96, 64


def kept_patterns(heads: TopHeads, n_tokens: int) -> tuple[Head, ...]:
    """Heads whose whole attention pattern on a prompt of ``n_tokens`` is kept: as many of the strongest as fit, and
    always the chosen ones."""
    fit = PATTERN_CELLS // min(n_tokens, PATTERN_TOKENS) ** 2
    return heads.ranked()[: max(len(heads.heads), min(PATTERN_HEADS, fit))]


def _heads(job: Job, prompts: Pair, selection: Selection) -> TopHeads:
    """Chosen on validation prompts, reported on test prompts."""
    from .ranking import top_heads

    harmful, harmless = prompts
    choosing, reported, top = harmful.val.texts, harmful.test.texts, min(TOP, job.model.n_heads)
    with job.progress("attribute heads", 0):
        more: Any = {"contrast": harmless.test.texts, "top": top, "engine": job.engine}
        return top_heads(job.model, choosing, reported, selection.chosen, **more)


def _causal(
    job: Job, prompts: Pair, selection: Selection, refusal_tokens: RefusalTokens, heads: TopHeads
) -> CausalCheck:
    from .causal import causal_check

    some, contrast = (p.test.texts[: job.config.inside_prompts] for p in prompts)
    with job.progress("replace heads", 0):
        return causal_check(job.model, some, contrast, selection.chosen, heads, refusal_tokens, engine=job.engine)


def _logits(job: Job, prompts: Pair, refusal_tokens: RefusalTokens) -> DirectLogitAttribution:
    from .logits import compliance_tokens, direct_logit_attribution

    harmful, harmless = prompts
    with job.progress("attribute logits", 0):
        against = compliance_tokens(job.model, harmless.val.texts, refusal_tokens)
        return direct_logit_attribution(job.model, harmful.test.texts, refusal_tokens, against, engine=job.engine)


def _propagation(job: Job, prompts: Pair, selection: Selection) -> Propagation:
    from .sources import propagation

    with job.progress("trace the direction over tokens", 0):
        some = prompts[0].test.texts[: job.config.inside_prompts]
        return propagation(job.model, some, selection.chosen, engine=job.engine)


def _sources(job: Job, prompts: Pair, selection: Selection) -> SourceContributions:
    from .sources import source_contributions

    with job.progress("attribute source tokens", 0):
        some = prompts[0].test.texts[: job.config.inside_prompts]
        return source_contributions(job.model, some, selection.chosen, engine=job.engine)


def _patterns(job: Job, prompts: Pair, heads: TopHeads, sources: SourceContributions) -> AttentionPatterns:
    from .sources import attention_patterns

    with job.progress("read attention patterns", 0):
        kept = kept_patterns(heads, len(sources.tokens[0]))
        return attention_patterns(job.model, prompts[0].test.texts[0], kept)


def _lens(job: Job, prompts: Pair, candidates: CandidateDirections, selection: Selection, heads: TopHeads) -> Lens:
    """The direction, the candidates at its position by layer, and the chosen heads' writes."""
    from .vocabulary import head_writes, lens

    chosen, norms = selection.chosen, candidates.mean_diff[selection.chosen.pos].norm(dim=-1)
    layers = [layer for layer, norm in enumerate(norms.tolist()) if 0 < norm < float("inf") and layer != chosen.layer]
    vectors = {f"layer {layer}": candidates.direction(chosen.pos, layer) for layer in layers}
    with job.progress("read vectors as tokens", 0):
        some = prompts[0].test.texts[: job.config.inside_prompts]
        writes = head_writes(job.model, some, sorted(heads.heads))
        return lens(job.model, {"direction": chosen, **vectors, **writes})


def _section(study: Any) -> Any:
    return inside_section(study.trace, Inside(**study.inside) if study.inside else None)


def _stage(name: str, kind: type, run: Any, holds: str, **more: Any) -> Stage:
    return Stage(name, {f"inside/{name}": kind}, run, holds, when="attribution", optional=True, **more)


SOME = ("inside_prompts",)
STAGES = (
    _stage("heads", TopHeads, _heads, "what each head writes along the direction"),
    _stage("causal", CausalCheck, _causal, "what the model does without the top heads", uses=SOME, version=2),
    _stage("logits", DirectLogitAttribution, _logits, "direct logit attribution"),
    _stage("propagation", Propagation, _propagation, "the direction by layer and token", uses=SOME),
    _stage("sources", SourceContributions, _sources, "what heads take from each token", uses=SOME),
    _stage("lens", Lens, _lens, "the tokens that the direction and the top heads favour", uses=SOME),
    _stage("patterns", AttentionPatterns, _patterns, "attention patterns", section=_section),
)
INSIDE = tuple(stage.name for stage in STAGES)
