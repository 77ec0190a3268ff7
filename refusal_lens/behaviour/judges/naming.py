"""Judges by name, for the command line."""

from __future__ import annotations

from .base import Judge, JudgeError, SubstringJudge
from .classifier import ClassifierJudge
from .endpoint import EndpointJudge
from .forms import FORMS
from .llama_guard import LlamaGuardJudge


def judge_named(text: str) -> Judge:
    """A judge from its name: one of ``FORMS``.

    Raises:
        JudgeError: another form, or a judge that can't be loaded.
    """
    form, _, rest = text.partition(":")
    if text == "substrings":
        return SubstringJudge()
    if form in ("llama-guard-2", "llama-guard-3") and rest:
        return LlamaGuardJudge(rest, int(form[-1]))
    if form == "classifier" and rest:
        folder, _, labels = rest.partition("#")
        return ClassifierJudge(folder, tuple(labels.split(",")) if labels else ("safe",))
    model, _, address = rest.partition("@")
    if form == "openai" and model and address:
        return EndpointJudge(address, model)
    raise JudgeError(f"there is no judge {text!r}; write one as {FORMS}")
