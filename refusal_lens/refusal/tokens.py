"""Refusal tokens: the first tokens of refusals, found in replies or given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from ..data.prompts import PromptsLike, as_prompts
from ..errors import ModelError, PromptError
from ..models.model import HookedChatModel
from ..progress import Progress, silent
from ..records.labels import visible
from .phrases import is_refusal
from .records import RefusalTokens

N_PROMPTS = 64  # training prompts of each kind whose replies a study and `find_direction` read for refusal tokens


def given_refusal_tokens(model: HookedChatModel, tokens: Sequence[int | str]) -> RefusalTokens:
    """Refusal tokens named by hand, as ids or as text that is one token.

    Raises:
        PromptError: text that is not exactly one token, or an id outside the vocabulary.

    Example:
        >>> rl.refusal.given_refusal_tokens(model, ["I"]).texts
        ('I',)
    """
    ids = []
    for token in tokens:
        if isinstance(token, str) and not token.isdecimal():
            encoded = model.tokenizer(token, add_special_tokens=False)["input_ids"]
            if len(encoded) != 1:
                raise PromptError(f"refusal token {token!r} is {len(encoded)} tokens; name its first one alone")
            ids.append(int(encoded[0]))
        else:
            ids.append(int(token))
        if not 0 <= ids[-1] < model.d_vocab:
            raise PromptError(f"refusal token {token!r} is outside the vocabulary of {model.d_vocab}")
    if not ids:
        raise PromptError("no refusal token was given")
    return _tokens(model, ids)


def _tokens(model: HookedChatModel, ids: Sequence[int], shares: Sequence[float] = (), *source: str) -> RefusalTokens:
    return RefusalTokens(tuple(ids), tuple(visible(model.tokenizer.decode([i])) for i in ids), tuple(shares), *source)


def find_refusal_tokens(
    model: HookedChatModel,
    harmful: PromptsLike,
    harmless: PromptsLike,
    *,
    min_share: float = 0.05,
    max_new_tokens: int = 24,
    progress: Progress = silent,
) -> RefusalTokens:
    """Tokens that begin the model's own refusals and rarely its answers.

    A token is taken when it begins at least ``min_share`` of the refused replies to ``harmful`` and, relative
    to the answered replies to ``harmless``, at least four times as often.

    Raises:
        ModelError: when no reply to a harmful prompt is a refusal (a base model, or one that never refuses).

    Example:
        >>> rl.find_refusal_tokens(model, data.harmful.train.texts, data.harmless.train.texts).texts
        ('I',)
    """
    harmful, harmless = as_prompts(harmful, "train"), as_prompts(harmless, "train")
    with progress("find the refusal tokens", len(harmful) + len(harmless)) as advance:
        refused = [token for token, flag in _first_tokens(model, harmful, max_new_tokens, advance) if flag]
        answered = [token for token, flag in _first_tokens(model, harmless, max_new_tokens, advance) if not flag]
    if not refused:
        raise ModelError(
            f"{model.name} refused none of {len(harmful)} harmful prompts, so it has no refusal to find: use a chat "
            "model with safety training, other prompts, or name its refusal tokens (--refusal-token)"
        )
    shares = {token: n / len(refused) for token, n in Counter(refused).most_common()}
    in_answers = {token: answered.count(token) / max(1, len(answered)) for token in shares}
    chosen = [t for t, share in shares.items() if share >= min_share and share >= 4 * in_answers[t]]
    if not chosen:
        raise ModelError(
            f"{model.name} begins refusals and answers with the same tokens, so the refusal metric can't tell them "
            "apart: name its refusal tokens (--refusal-token)"
        )
    source = f"first tokens of {len(refused)} refusals to {len(harmful)} harmful prompts"
    return _tokens(model, chosen, [shares[t] for t in chosen], source)


def _first_tokens(
    model: HookedChatModel, prompts: list[str], max_new_tokens: int, on_batch: Callable[[int], None]
) -> list[tuple[int, bool]]:
    """(first token id, refused) of each reply."""
    first = model.last_logits(prompts).argmax(-1).tolist()
    replies = model.generate(prompts, max_new_tokens, on_batch=on_batch)
    return [(token, is_refusal(reply)) for token, reply in zip(first, replies, strict=True)]


def behaviour_tokens(
    model: HookedChatModel, positive: PromptsLike, negative: PromptsLike, top: int = 2
) -> RefusalTokens:
    """Tokens whose probability as a reply's first token is raised most by ``positive`` against ``negative`` prompts:
    the metric of a behaviour that has no phrases of its own.

    Raises:
        ModelError: no token is raised.
    """
    positive, negative = as_prompts(positive), as_prompts(negative)
    means = [model.last_logits(p).double().softmax(-1).mean(0) for p in (positive, negative)]
    best = (means[0] - means[1]).topk(top)
    ids = [i for i, rise in zip(best.indices.tolist(), best.values.tolist(), strict=True) if rise > 0]
    if not ids:
        raise ModelError(f"{model.name} begins its replies to both kinds of prompts alike: no token tells them apart")
    source = f"first tokens raised by {len(positive)} prompts of the behaviour"
    return _tokens(model, ids, [float(means[0][i]) for i in ids], source)
