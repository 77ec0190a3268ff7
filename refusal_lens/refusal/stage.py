"""Stages of a study: the refusal tokens, and the prompts as used."""

from __future__ import annotations

from ..data.prompts import Prompts, PromptSet
from ..engines.stage import Job, Stage
from .records import RefusalTokens

N_PROMPTS = 64  # of each kind, from whose first reply tokens the refusal tokens are found


def _tokens(job: Job) -> RefusalTokens:
    from .tokens import find_refusal_tokens, given_refusal_tokens

    harmful, harmless = job.input("prompts")
    model = job.model
    if job.config.refusal_tokens:
        return given_refusal_tokens(model, job.config.refusal_tokens)
    some = harmful.train[:N_PROMPTS].texts, harmless.train[:N_PROMPTS].texts
    with job.progress("find the refusal tokens", len(some[0]) + len(some[1])) as advance:
        return find_refusal_tokens(model, *some, on_batch=advance)


def _prompts(job: Job, refusal_tokens: RefusalTokens) -> tuple[PromptSet, ...]:
    """Training and validation prompts that the model refuses (harmful) or answers (harmless)."""
    from .metric import keep_refused

    harmful, harmless = job.input("prompts")
    pairs = {split: (getattr(harmful, split), getattr(harmless, split)) for split in ("train", "val")}
    with job.progress("filter the prompts", sum(len(p) for pair in pairs.values() for p in pair)) as advance:
        splits = {
            split: keep_refused(job.model, *pair, refusal_tokens, on_batch=advance, engine=job.engine)
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
    return tuple(made)


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
