"""The table of conditions x prompt sets x judges, resumable reply by reply."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.files import read_file
from ..data.prompts import PromptsLike, as_prompt_sets
from ..data.rows import distinct, texts_of
from ..errors import PromptError
from ..hooks.conditions import CONDITIONS, named_conditions
from ..models.model import HookedChatModel
from ..progress import Progress, automatic
from ..records.direction import DirectionLike, as_direction
from ..records.store import Store, content_key
from ..records.stream import StreamStatistics
from ..refusal.records import Completion, Completions
from ..refusal.replies import check_finite, completion
from .judges.base import Judge, SubstringJudge, file_name, judge_completions
from .judges.kappa import agreement
from .records import EvaluationTable, Verdict


def read_prompts(source: str, notes: list[str]) -> tuple[str, list[str]]:
    """(name, prompts) of one file, as "file" or "name=file"; of a file with splits, the test split.

    Args:
        notes: gets what was dropped or changed on the way, in words.

    Raises:
        PromptError: missing, unreadable or empty.
    """
    # A file that exists wins: its folder may be named "model=qwen,seed=0".
    name, _, file = ("", "", source) if Path(source).is_file() else source.partition("=")
    if not file:
        name, file = "", source
    path = Path(file)
    if not path.is_file():
        raise PromptError(f"there is no prompt file {file!r}; give a .txt, .csv, .json or .jsonl file")
    document = read_file(path)
    if isinstance(document, dict):
        if "test" not in document:
            raise PromptError(f"{file} has no test split; give a list of prompts, or an object with a test list")
        document = document["test"]
    return name or path.name.split(".")[0], distinct(texts_of(document, file, notes), "all", {}, notes)


def evaluate_table(
    model: HookedChatModel,
    direction: DirectionLike,
    prompt_sets: Mapping[str, PromptsLike] | PromptsLike,
    folder: str | Path | None = None,
    *,
    conditions: Sequence[str] = CONDITIONS,
    judges: Sequence[Judge] | None = None,
    max_new_tokens: int = 64,
    seed: int = 0,
    form: str = "paper",
    statistics: StreamStatistics | None = None,
    allow_gap: bool = False,
    batch_size: int = 32,
    progress: Progress = automatic,
) -> EvaluationTable:
    """Reply under each condition, and judge the replies; with the same folder, resume where it stopped.

    Args:
        prompt_sets: name -> prompts; one set without a name is called "prompts".
        folder: where replies and verdicts are kept as they come (``replies/``, ``verdicts/``, ``table``); None keeps
            nothing.
        conditions: some of ``hooks.conditions.CONDITIONS``.
        judges: the paper's substrings if None.
        max_new_tokens: length limit of replies (the paper: 512).
        seed: of the random directions.
        form, statistics: of "ablation" and "random_ablation", as in ``Ablate``.
        allow_gap: run ``orthogonalized`` on a model with post-norms, where it is not equivalent to ablation.
        batch_size: replies decoded together, and the most that a kill can cost.

    Raises:
        ModelError: NaN logits, or ``orthogonalized`` on a model with post-norms without ``allow_gap``.
        JudgeError: a judge failed; everything so far is kept.

    Example:
        >>> prompts = {"harmful": data.harmful.test[:4]}
        >>> rl.behaviour.evaluate_table(model, found.direction, prompts, conditions=["baseline"]).to_frame()["n"].sum()
        np.int64(4)
    """
    direction = as_direction(direction)
    model.check_direction(direction)
    store = Store(folder)
    edits = named_conditions(direction, conditions, seed, allow_gap, form=form, statistics=statistics)
    r = [round(x, 7) for x in direction.vector.tolist()]
    shared = [model.fingerprint, model.chat.settings, direction.layer, direction.coeff, max_new_tokens]
    completions = []
    for name, prompts in as_prompt_sets(prompt_sets).items():
        if not len(prompts):
            raise PromptError(f"the prompt set {name!r} is empty")
        items: list[Completion] = []
        with progress(f"answer {name} prompts", len(prompts) * len(edits)) as advance:
            for condition, active_edits in edits.items():
                kept = f"replies/{file_name(name)}.{condition}"
                known = store.entries(kept)
                # The direction decides every condition but the baseline, the seed only the random ones.
                decides: list[Any] = [r, seed if condition.startswith("random_") else None] * (condition != "baseline")
                if form != "paper" and condition.endswith("ablation"):
                    decides.append(form)
                keys = {p: content_key(shared, decides, condition, p) for p in prompts}
                todo = [p for p in dict.fromkeys(prompts) if keys[p] not in known]
                advance(sum(keys[p] in known for p in prompts))
                for start in range(0, len(todo), batch_size):
                    batch = todo[start : start + batch_size]
                    with model.hooks(*active_edits):
                        check_finite(model, batch, condition)
                        replies = model.generate(batch, max_new_tokens, batch_size=batch_size)
                    new = {keys[p]: reply for p, reply in zip(batch, replies, strict=True)}
                    store.add(kept, new)
                    known |= new
                    advance(len(batch))
                items += [completion(model, p, known[keys[p]], condition) for p in prompts]
        completions.append(Completions(tuple(items), name, max_new_tokens))
    verdicts: list[Verdict] = []
    for judge in judges or [SubstringJudge()]:
        with progress(f"judge: {judge.name}", sum(len(c.items) for c in completions)) as advance:
            verdicts += judge_completions(judge, completions, store.part("verdicts"), advance)
    table = EvaluationTable(model.name, direction, tuple(completions), tuple(verdicts), agreement(verdicts), seed)
    return store.put("table", table)
