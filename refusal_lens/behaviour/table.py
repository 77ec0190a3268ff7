"""The table of conditions x prompt sets x judges, resumable reply by reply."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..data.files import read_file
from ..data.prompts import _texts
from ..errors import PromptError
from ..hooks.conditions import CONDITIONS, named_conditions
from ..models.model import HookedChatModel
from ..progress import Progress, silent
from ..records.direction import Direction
from ..records.jsonlog import JsonLog, digest
from ..refusal.phrases import is_refusal
from ..refusal.records import Completion, Completions
from ..refusal.replies import check_finite, replies
from .judges.base import Judge, SubstringJudge, judge_completions
from .judges.kappa import agreement
from .records import EvaluationTable, Verdict


def read_prompts(source: str) -> tuple[str, list[str]]:
    """(name, prompts) of one file, as "file" or "name=file"; of a file with splits, the test split.

    Raises:
        PromptError: missing, unreadable or empty.
    """
    name, _, file = source.rpartition("=")
    path = Path(file)
    if not path.is_file():
        raise PromptError(f"there is no prompt file {file!r}; give a .txt, .csv, .json or .jsonl file")
    document = read_file(path)
    if isinstance(document, dict):
        if "test" not in document:
            raise PromptError(f"{file} has no test split; give a list of prompts, or an object with a test list")
        document = document["test"]
    return name or path.name.split(".")[0], list(dict.fromkeys(_texts(document, file)))


def evaluate_table(
    model: HookedChatModel,
    direction: Direction,
    prompt_sets: Mapping[str, Sequence[str]],
    folder: str | Path | None = None,
    *,
    conditions: Sequence[str] = CONDITIONS,
    judges: Sequence[Judge] | None = None,
    max_new_tokens: int = 64,
    seed: int = 0,
    allow_gap: bool = False,
    batch_size: int = 32,
    progress: Progress = silent,
) -> EvaluationTable:
    """Replies under each condition, judged; run again with the same folder it goes on where it stopped.

    Args:
        model, direction: what is measured.
        prompt_sets: name -> prompts.
        folder: where replies and verdicts are kept as they come (``replies/``, ``verdicts/``, ``table``); None keeps
            nothing.
        conditions: some of ``evaluation.CONDITIONS``.
        judges: the paper's substrings if None.
        max_new_tokens: length limit of replies (the paper: 512).
        seed: of the random directions.
        allow_gap: run ``orthogonalized`` on a model with post-norms, where it is not equivalent to ablation.
        batch_size: replies decoded together, and the most that a kill can cost.
        progress: see ``study.Progress``.

    Raises:
        ModelError: NaN logits, or ``orthogonalized`` on a model with post-norms without ``allow_gap``.
        JudgeError: a judge failed; everything so far is kept.
    """
    model.check_direction(direction)
    root = Path(folder) if folder is not None else None
    edits = named_conditions(direction, conditions, seed, allow_gap)
    r = [round(x, 7) for x in direction.vector.tolist()]
    asked = [model.fingerprint, model.chat.system, direction.layer, direction.coeff, max_new_tokens]
    completions = []
    for name, prompts in prompt_sets.items():
        if not len(prompts):
            raise PromptError(f"the prompt set {name!r} is empty")
        items: list[Completion] = []
        with progress(f"answer {name} prompts", len(prompts) * len(edits)) as advance:
            for condition, active_edits in edits.items():
                log = JsonLog(root / "replies" / f"{_slug(name)}.{condition}.jsonl" if root is not None else None)
                # The direction decides every condition but the baseline, the seed only the random ones.
                decides = [] if condition == "baseline" else [r, seed if condition.startswith("random_") else None]
                keys = {p: digest(asked, decides, condition, p) for p in prompts}
                todo = [p for p in dict.fromkeys(prompts) if keys[p] not in log]
                advance(sum(keys[p] in log for p in prompts))
                for start in range(0, len(todo), batch_size):
                    batch = todo[start : start + batch_size]
                    with model.hooks(*active_edits):
                        check_finite(model, batch, condition)
                        found = replies(model, batch, max_new_tokens, batch_size=batch_size)
                    log.add((keys[p], reply) for p, reply in zip(batch, found, strict=True))
                    advance(len(batch))
                items += [Completion(p, log[keys[p]], condition, is_refusal(log[keys[p]])) for p in prompts]
        completions.append(Completions(tuple(items), name, max_new_tokens))
    verdicts = judged(completions, judges or [SubstringJudge()], root, progress)
    table = EvaluationTable(model.name, direction, tuple(completions), verdicts, agreement(verdicts), seed)
    if root is not None:
        table.save(root / "table")
    return table


def judged(
    completions: Sequence[Completions], judges: Iterable[Judge], folder: Path | None = None, progress: Progress = silent
) -> tuple[Verdict, ...]:
    """Every judge on every reply; verdicts are kept in ``folder``/verdicts as they come.

    Raises:
        JudgeError: a judge failed; its verdicts so far are kept.
    """
    verdicts: list[Verdict] = []
    for judge in judges:
        log = folder / "verdicts" / f"{_slug(judge.name)}.jsonl" if folder is not None else None
        with progress(f"judge: {judge.name}", sum(len(c.items) for c in completions)) as advance:
            verdicts += judge_completions(judge, completions, log, advance)
    return tuple(verdicts)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)
