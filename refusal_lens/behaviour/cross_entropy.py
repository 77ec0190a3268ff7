"""Cross-entropy loss and perplexity under interventions: side effects (paper appendix G.3, Table 9)."""

from collections.abc import Callable, Sequence

import torch

from ..errors import ModelError, PromptError
from ..hooks.conditions import Conditions
from ..models.model import HookedChatModel
from ..models.texts import Scored, batch_nll, scored_batches
from .records import Losses


def losses(
    model: HookedChatModel,
    texts: Sequence[Scored],
    conditions: Conditions,
    dataset: str = "text",
    on_batch: Callable[[int], None] | None = None,
) -> Losses:
    """Measure the negative log-likelihood of the tokens that count, under each condition.

    Args:
        texts: from ``text_tokens``, ``completion_tokens`` or ``own_completions``.

    Raises:
        PromptError: no text has a token to predict.
        ModelError: NaN or infinite loss, naming the condition.

    Example:
        >>> from refusal_lens.models.texts import own_completions
        >>> conditions = rl.hooks.named_conditions(found.direction, ["baseline", "ablation"])
        >>> rl.behaviour.losses(model, own_completions(model, data.harmless.test[:4], 8), conditions).sizes
        {'condition': 2, 'text': 4}
    """
    if not texts:
        raise PromptError("no text has a token whose loss could be measured; give longer texts or completions")
    nll = torch.zeros(len(conditions), len(texts), dtype=torch.float64)
    for c, (name, edits) in enumerate(conditions.items()):
        with model.hooks(*edits):
            for tokens in scored_batches(model, texts):
                nll[c, list(tokens.indices)] = batch_nll(model, tokens, [texts[i] for i in tokens.indices])
                if on_batch:
                    on_batch(len(tokens))
        if not bool(torch.isfinite(nll[c]).all()):
            raise ModelError(
                f"{model.name} gives a NaN or infinite loss under {name}: load it in bfloat16 or float32, or use a "
                "smaller coefficient"
            )
    counts = torch.tensor([len(text.ids) - text.first for text in texts])
    return Losses(dataset, tuple(conditions), nll, counts)
