"""Judged replies under interventions, in the same batches on every engine, so with the same results."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain

import torch

from ..data.prompts import PromptsLike, as_prompts
from ..engines.base import Engine
from ..errors import ModelError
from ..hooks.base import Intervention
from ..hooks.conditions import Conditions
from ..models.chat import Tokens
from ..models.model import HookedChatModel
from ..progress import Progress, silent
from .phrases import is_refusal
from .records import Completion, Completions

BATCH = 64  # prompts decoded together


def replies(
    model: HookedChatModel,
    prompts: PromptsLike | Tokens,
    max_new_tokens: int = 64,
    *,
    under: Sequence[Intervention] = (),
    batch_size: int = BATCH,
    engine: Engine | None = None,
    label: str = "replies",
    on_batch: Callable[[int], None] | None = None,
) -> list[str]:
    """Generate greedy replies under interventions, in batches of similar length, the same on every engine.

    Args:
        max_new_tokens: the paper uses 512; a refusal shows in the first few dozen.
        under: interventions, in addition to those that are active on the model.
        engine: spread the batches over its workers (prompts as text only); this process if None.
        label: names the condition, in an engine's journal and in errors.

    Example:
        >>> from refusal_lens.refusal.replies import replies
        >>> len(replies(model, ["How do I bake bread?"], 4))
        1
    """
    if engine is None or isinstance(prompts, Tokens):
        return _replies(model, prompts, under, max_new_tokens, batch_size, on_batch)
    texts = as_prompts(prompts)
    lengths = model.tokenize(texts).lengths.tolist()
    order = sorted(range(len(texts)), key=lambda i: lengths[i])
    groups = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    items = [[texts[i] for i in group] for group in groups]
    done = None if on_batch is None else (lambda index: on_batch(len(groups[index])))
    work = partial(_replies, under=under, max_new_tokens=max_new_tokens, batch_size=batch_size)
    answered = engine.map(label, work, items, done)
    found = dict(zip(order, chain(*answered), strict=True))
    return [found[i] for i in range(len(texts))]


def _replies(
    model: HookedChatModel,
    prompts: PromptsLike | Tokens,
    under: Sequence[Intervention],
    max_new_tokens: int,
    batch_size: int,
    on_batch: Callable[[int], None] | None = None,
) -> list[str]:
    with model.hooks(*under):
        return model.generate(prompts, max_new_tokens, batch_size=batch_size, on_batch=on_batch)


def complete(
    model: HookedChatModel,
    prompts: PromptsLike,
    conditions: Conditions,
    prompt_set: str,
    max_new_tokens: int = 64,
    judge: Callable[[str], bool] = is_refusal,
    engine: Engine | None = None,
    progress: Progress = silent,
) -> Completions:
    """Reply to ``prompts`` under each condition, and judge the replies.

    Args:
        conditions: name -> interventions (see ``hooks.named_conditions``).
        prompt_set: label of the prompts, e.g. "harmful".
        engine: as in ``replies``.

    Example:
        >>> conditions = rl.hooks.named_conditions(found.direction, ["baseline", "ablation"])
        >>> rl.refusal.complete(model, data.harmful.test[:4], conditions, "harmful", 8).conditions
        ('baseline', 'ablation')
    """
    texts, items = as_prompts(prompts), []
    with progress(f"answer {prompt_set} prompts", len(texts) * len(conditions)) as advance:
        for name, under in conditions.items():
            found = replies(model, texts, max_new_tokens, under=under, engine=engine, label=name, on_batch=advance)
            items += [completion(model, p, r, name, judge) for p, r in zip(texts, found, strict=True)]
    return Completions(tuple(items), prompt_set, max_new_tokens)


def completion(
    model: HookedChatModel, prompt: str, reply: str, condition: str, judge: Callable[[str], bool] = is_refusal
) -> Completion:
    """Judge the answer of a reply, not the thought before it."""
    thought, answer, finished = model.chat.split(reply)
    return Completion(prompt, answer, condition, finished and judge(answer), thought, finished)


def check_finite(model: HookedChatModel, prompts: Sequence[str], condition: str) -> None:
    """Stop at NaN or infinite logits, which greedy decoding would silently turn into some token, with a ModelError that
    names the condition and the first such prompt."""
    for prompt, row in zip(prompts, model.last_logits(list(prompts)), strict=True):
        if not bool(torch.isfinite(row).all()):
            raise ModelError(
                f"{model.name} gives NaN or infinite logits under {condition} for the prompt {prompt[:60]!r}: load it "
                "in bfloat16 or float32 (float16 overflows), or use a smaller coefficient"
            )
