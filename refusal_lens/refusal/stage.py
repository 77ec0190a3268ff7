"""Stages of a study: the refusal tokens, and the prompts as used."""

from __future__ import annotations

from ..data.prompts import PromptSet
from ..engines.stage import Job, Stage
from .records import RefusalTokens


def _tokens(job: Job) -> RefusalTokens:
    from .tokens import N_PROMPTS, find_refusal_tokens, given_refusal_tokens

    if job.config.refusal_tokens:
        return given_refusal_tokens(job.model, job.config.refusal_tokens)
    some = [prompts.train[:N_PROMPTS].texts for prompts in job.input("prompts")]
    return find_refusal_tokens(job.model, *some, progress=job.progress)


def _prompts(job: Job, refusal_tokens: RefusalTokens) -> tuple[PromptSet, PromptSet]:
    from .metric import filter_prompts

    harmful, harmless = job.input("prompts")
    return filter_prompts(job.model, harmful, harmless, refusal_tokens, job.progress, job.engine)


STAGES = (
    Stage(
        "refusal_tokens",
        {"refusal_tokens": RefusalTokens},
        _tokens,
        "tokens of the refusal metric",
        uses=("refusal_tokens",),
        inputs=("prompts",),
    ),
    Stage(
        "prompts",
        {"prompts_harmful": PromptSet, "prompts_harmless": PromptSet},
        _prompts,
        "the prompts as used, by split, with what was dropped",
        inputs=("prompts",),
    ),
)
