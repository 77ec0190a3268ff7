"""Stages of a study: the refusal tokens, and the prompts as used."""

from ..data.prompts import PromptSet
from ..engines.stage import Job, Stage
from .records import RefusalTokens


def _tokens(job: Job) -> RefusalTokens:
    from .tokens import N_PROMPTS, calibrate_tokens, find_refusal_tokens, given_refusal_tokens

    point, given = job.config.filter, job.config.refusal_tokens
    harmful, harmless = (prompts.train[:N_PROMPTS].texts for prompts in job.input("prompts"))
    if given:
        tokens = given_refusal_tokens(job.model, given)
        return calibrate_tokens(job.model, tokens, harmful, harmless, point=point, progress=job.progress)
    return find_refusal_tokens(job.model, harmful, harmless, point=point, progress=job.progress)


def _prompts(job: Job, refusal_tokens: RefusalTokens) -> tuple[PromptSet, PromptSet]:
    from .metric import filter_prompts

    harmful, harmless = job.input("prompts")
    return filter_prompts(job.model, harmful, harmless, refusal_tokens, job.progress, job.engine)


STAGES = (
    Stage(
        "refusal_tokens",
        {"refusal_tokens": RefusalTokens},
        _tokens,
        "tokens of the refusal metric, how well they separate refused from answered replies, and its calibrated point",
        version=2,
        uses=("refusal_tokens", "filter"),
        inputs=("prompts",),
    ),
    Stage(
        "prompts",
        {"prompts_harmful": PromptSet, "prompts_harmless": PromptSet},
        _prompts,
        "the prompts as used, by split, with what was dropped",
        version=2,
        inputs=("prompts",),
    ),
)
