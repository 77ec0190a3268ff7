"""The refusal metric as a proxy: how well the log-odds of the first token tell refusals from answers (paper
appendix B, Figs. 9-10)."""

from collections.abc import Mapping, Sequence

import torch

from ..models.model import HookedChatModel
from ..refusal.metric import refusal_metric
from ..refusal.phrases import is_refusal
from ..refusal.records import RefusalTokens
from ..refusal.replies import replies
from .records import RefusalProxy


def refusal_proxy(
    model: HookedChatModel,
    prompt_sets: Mapping[str, Sequence[str]],
    refusal_tokens: RefusalTokens,
    max_new_tokens: int = 64,
) -> RefusalProxy:
    """Measure the metric of every prompt and judge its reply by the paper's phrases.

    Example:
        >>> prompts = {"harmful": data.harmful.test[:4], "harmless": data.harmless.test[:4]}
        >>> rl.behaviour.refusal_proxy(model, prompts, found.refusal_tokens, 8).sizes
        {'prompt': 8}
    """
    prompts = [prompt for texts in prompt_sets.values() for prompt in texts]
    names = tuple(name for name, texts in prompt_sets.items() for _ in texts)
    metric = refusal_metric(model, prompts, refusal_tokens)
    found = replies(model, prompts, max_new_tokens)
    return RefusalProxy(tuple(prompts), names, metric, torch.tensor([is_refusal(reply) for reply in found]))
