"""Judges by name, for the command line, whose help reads this without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Judge

FORMS = (
    "substrings; refusal:JUDGE, harmbench:JUDGE or strongreject:JUDGE, where JUDGE is the folder of a chat model or "
    "MODEL@http://HOST:PORT/v1; llama-guard-2:FOLDER; llama-guard-3:FOLDER; classifier:FOLDER (or "
    "classifier:FOLDER#LABEL,LABEL with the safe labels)"
)


def judge_named(text: str) -> Judge:
    """Make a judge from its name, in one of ``FORMS``.

    Raises:
        JudgeError: another form, or a judge that can't be loaded.

    Example:
        >>> from refusal_lens.behaviour.judges import judge_named
        >>> judge_named("refusal:judge-8b@http://127.0.0.1:8000/v1").kind
        'refusal'
    """
    from .base import JudgeError, SubstringJudge
    from .classifier import ClassifierJudge
    from .endpoint import EndpointJudge
    from .llama_guard import LlamaGuardJudge
    from .local import LocalJudge
    from .rubrics import RUBRICS

    form, _, rest = text.partition(":")
    if text == "substrings":
        return SubstringJudge()
    if form in ("llama-guard-2", "llama-guard-3") and rest:
        return LlamaGuardJudge(rest, int(form[-1]))
    if form == "classifier" and rest:
        folder, _, labels = rest.partition("#")
        return ClassifierJudge(folder, tuple(labels.split(",")) if labels else ("safe",))
    if form in RUBRICS and rest:
        model, at, address = rest.partition("@http")
        return EndpointJudge("http" + address, model, rubric=RUBRICS[form]) if at else LocalJudge(rest, RUBRICS[form])
    raise JudgeError(f"there is no judge {text!r}; write one as {FORMS}")
