"""Refusal tokens: the first tokens of refusals, found in replies or given."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ..data.files import check_text
from ..data.prompts import PromptsLike, as_prompts
from ..errors import ModelError, PromptError
from ..hooks.base import Model
from ..hooks.readers import Reader
from ..models.model import HookedChatModel
from ..progress import Progress, silent
from ..records.labels import visible
from ..stats import Interval, auroc, rate
from .calibration import calibrate_metric, choose_tokens, halves, metric_of
from .phrases import is_refusal
from .records import RefusalTokens

N_PROMPTS = 128  # training prompts of each kind whose replies a study and `find_direction` read for refusal tokens


# Whatever names tokens: ``RefusalTokens``, a result that has them, ids, or text that is one token; one or several.
TokensLike = Any


def as_refusal_tokens(model: Any, tokens: TokensLike) -> RefusalTokens:
    """``RefusalTokens`` as they are, those of what ``find_direction`` returned, or ``given_refusal_tokens``."""
    found: Any = getattr(tokens, "refusal_tokens", tokens)
    return found if isinstance(found, RefusalTokens) else given_refusal_tokens(model, found)


def given_refusal_tokens(model: Any, tokens: int | str | Sequence[int | str]) -> RefusalTokens:
    """Make refusal tokens from ids or from text that is one token; one or several, each counts once.

    Raises:
        PromptError: text that is not exactly one token, or an id outside the vocabulary.

    Example:
        >>> rl.refusal.given_refusal_tokens(model, ["I"]).texts
        ('I',)
    """
    ids = []
    for token in [tokens] if isinstance(tokens, (int, str)) else tokens:
        if isinstance(token, str):
            check_text(token, "a refusal token")
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
    return _tokens(model, tuple(dict.fromkeys(ids)))


def _tokens(model: Any, ids: Sequence[int], shares: Sequence[float] = (), source: str = "given") -> RefusalTokens:
    return RefusalTokens(tuple(ids), tuple(visible(model.tokenizer.decode([i])) for i in ids), tuple(shares), source)


def find_refusal_tokens(
    model: HookedChatModel,
    harmful: PromptsLike,
    harmless: PromptsLike,
    *,
    point: str = "calibrated",
    min_share: float = 0.05,
    max_new_tokens: int = 24,
    progress: Progress = silent,
) -> RefusalTokens:
    """Find the tokens whose probability separates the model's refusals from its answers, and calibrate their metric.

    Candidates are first tokens of at least ``min_share`` of the refused replies to half of the prompts, and of a larger
    share of these than of the answered ones; ``choose_tokens`` takes those that best separate the replies, judged by
    the area under the ROC curve on the other half.

    Args:
        harmful, harmless: training prompts.
        point: rule for the point of the metric above which a prompt counts as refused; see ``calibrate_metric``.

    Raises:
        ModelError: when no reply to a harmful prompt is a refusal (a base model, or one that never refuses), or when
            no token tells refused from answered replies.

    Example:
        >>> tokens = rl.find_refusal_tokens(model, data.harmful.train.texts, data.harmless.train.texts)
        >>> tokens.texts, str(tokens.coverage["refused"])
        (('I',), '100% [93%, 100%] (n = 48)')
    """
    replies = _replies(model, harmful, harmless, max_new_tokens, progress)
    n = replies.n_harmful
    if not any(replies.refused[:n]):
        raise ModelError(
            f"{model.name} refused none of {n} harmful prompts, so it has no refusal to find: use a chat model with "
            "safety training, other prompts, or give its refusal tokens (--refusal-token)"
        )
    propose, _ = halves(replies.refused)
    begun, in_answers = replies.shares(propose, True), replies.shares(propose, False)
    candidates = [t for t, share in begun.items() if share >= min_share and share > in_answers.get(t, 0)]
    apart = Interval(0.0, 0.0, 0.0, 0)
    if candidates:
        probabilities = replies.probabilities(model, candidates)
        chosen, apart = choose_tokens(probabilities, replies.refused)
    if apart.mean <= 0.5:
        raise ModelError(
            f"{model.name} begins refusals and answers with the same tokens, so the refusal metric can't tell them "
            "apart: give its refusal tokens (--refusal-token)"
        )
    shares = replies.shares(np.ones_like(propose), True)
    chosen.sort(key=lambda k: -shares[candidates[k]])
    ids = [candidates[k] for k in chosen]
    source = f"first tokens of {sum(replies.refused[:n])} refusals to {n} harmful prompts"
    tokens = _tokens(model, ids, [shares[token] for token in ids], source)
    return _calibrated(replace(tokens, auroc=apart), replies, metric_of(probabilities[:, chosen]), point)


def calibrate_tokens(
    model: HookedChatModel,
    tokens: RefusalTokens,
    harmful: PromptsLike,
    harmless: PromptsLike,
    *,
    point: str = "calibrated",
    max_new_tokens: int = 24,
    progress: Progress = silent,
) -> RefusalTokens:
    """Calibrate the metric of given tokens on replies to training prompts.

    Args:
        point: rule for the point above which a prompt counts as refused; see ``calibrate_metric``.

    Example:
        >>> tokens = rl.refusal.given_refusal_tokens(model, ["I"])
        >>> tokens = rl.refusal.calibrate_tokens(model, tokens, data.harmful, data.harmless)
        >>> tokens.calibration.point, tokens.auroc.mean
        ('calibrated', 1.0)
    """
    replies = _replies(model, harmful, harmless, max_new_tokens, progress)
    refused, metric = np.asarray(replies.refused), metric_of(replies.probabilities(model, tokens.ids))
    apart = auroc(metric[refused], metric[~refused])
    return _calibrated(replace(tokens, auroc=apart), replies, metric, point)


@dataclass(frozen=True)
class _Replies:
    """Judged replies to training prompts, harmful ones first."""

    prompts: list[str]
    n_harmful: int
    first: list[int]
    refused: list[bool]

    def shares(self, some: np.ndarray, refused: bool) -> dict[int, float]:
        """Share of the refused (or answered) replies among ``some`` that began with each token, most first."""
        kept = [t for t, flag, take in zip(self.first, self.refused, some, strict=True) if take and flag == refused]
        return {token: n / len(kept) for token, n in Counter(kept).most_common()}

    def probabilities(self, model: HookedChatModel, ids: Sequence[int]) -> np.ndarray:
        """Probability of each token after each prompt, [prompt, token]."""
        reader = _Probabilities(tuple(ids))
        return model.run(self.prompts, read=reader)[reader].numpy()


@dataclass(eq=False)
class _Probabilities(Reader[Tensor]):
    """Probabilities of some next tokens, float64."""

    ids: tuple[int, ...]
    needs_logits: ClassVar[bool] = True
    axis: ClassVar[int] = 0

    def values(self, model: Model, batch: Any, logits: Tensor | None) -> dict[str, Tensor]:
        assert logits is not None
        return {"p": logits.double().softmax(-1)[:, list(self.ids)]}

    def result(self) -> Float[Tensor, "prompt token"]:
        return self.rows["p"]


def _replies(
    model: HookedChatModel, harmful: PromptsLike, harmless: PromptsLike, max_new_tokens: int, progress: Progress
) -> _Replies:
    kinds = as_prompts(harmful, "train"), as_prompts(harmless, "train")
    prompts = [*kinds[0], *kinds[1]]
    with progress("find the refusal tokens", len(prompts)) as advance:
        first = [token for texts in kinds for token in model.last_logits(texts).argmax(-1).tolist()]
        texts = [reply for texts in kinds for reply in model.generate(texts, max_new_tokens, on_batch=advance)]
    split = [model.chat.split(text) for text in texts]
    if 2 * sum(bool(reply.thought) or not reply.finished for reply in split) > len(split):
        raise ModelError(
            f"{model.name} begins its replies with a thought, and the refusal metric reads their first token: "
            f"{model.chat.template.how_to_skip()}"
        )
    return _Replies(prompts, len(kinds[0]), first, [is_refusal(reply.answer) for reply in split])


def _calibrated(tokens: RefusalTokens, replies: _Replies, metric: np.ndarray, point: str) -> RefusalTokens:
    """The tokens with their coverage of the replies and the point of their metric."""
    begun: dict[str, list[bool]] = {"refused": [], "answered": []}
    for token, refused in zip(replies.first, replies.refused, strict=True):
        begun["refused" if refused else "answered"].append(token in tokens.ids)
    coverage = {name: rate(hits) for name, hits in begun.items()}
    calibration = calibrate_metric(metric.tolist(), replies.refused, point)
    return replace(tokens, coverage=coverage, calibration=calibration)


def behaviour_tokens(
    model: HookedChatModel, positive: PromptsLike, negative: PromptsLike, top: int = 2
) -> RefusalTokens:
    """Find the first tokens of replies that gain most probability from ``negative`` to ``positive`` prompts: the metric
    of a behaviour that has no phrases of its own; ModelError where no token gains."""
    positive, negative = as_prompts(positive), as_prompts(negative)
    means = [model.last_logits(p).double().softmax(-1).mean(0) for p in (positive, negative)]
    best = (means[0] - means[1]).topk(top)
    ids = [i for i, rise in zip(best.indices.tolist(), best.values.tolist(), strict=True) if rise > 0]
    if not ids:
        raise ModelError(f"{model.name} begins its replies to both kinds of prompts alike: no token tells them apart")
    source = f"first tokens raised by {len(positive)} prompts of the behaviour"
    return _tokens(model, ids, [float(means[0][i]) for i in ids], source)
