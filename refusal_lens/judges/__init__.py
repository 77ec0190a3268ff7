"""Judges of replies, pluggable: phrases, local classifiers, Llama Guard, any OpenAI-compatible endpoint."""

from .agreement import Agreement, agreement, cohen_kappa
from .base import Judge, JudgeError, Judgement, SubstringJudge, Verdict, judge_completions, verdict_rates
from .classifier import ClassifierJudge
from .endpoint import EndpointJudge
from .llama_guard import LlamaGuardJudge, guard_prompt
from .naming import judge_named

__all__ = [
    "Agreement",
    "ClassifierJudge",
    "EndpointJudge",
    "Judge",
    "JudgeError",
    "Judgement",
    "LlamaGuardJudge",
    "SubstringJudge",
    "Verdict",
    "agreement",
    "cohen_kappa",
    "guard_prompt",
    "judge_completions",
    "judge_named",
    "verdict_rates",
]
