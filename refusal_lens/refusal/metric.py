"""The refusal metric, and the filter of prompts by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from ..data.prompts import Prompts, PromptSet, PromptsLike, as_prompts
from ..engines.base import Engine
from ..engines.local import LocalEngine
from ..errors import ModelError
from ..hooks.base import Intervention, Model
from ..hooks.readers import Reader
from ..models.model import HookedChatModel
from ..progress import Progress, silent
from ..tensors import refusal_log_odds
from .records import RefusalTokens


@dataclass(eq=False)
class RefusalMetric(Reader[Tensor]):
    """log p - log(1 - p) of the refusal tokens after each prompt, for ``model.run``."""

    tokens: RefusalTokens
    needs_logits: ClassVar[bool] = True
    can_pack: ClassVar[bool] = True

    def values(self, model: Model, batch: Any, logits: Tensor | None) -> dict[str, Tensor]:
        assert logits is not None
        return {"metric": refusal_log_odds(logits, self.tokens.ids)}

    def result(self) -> Float[Tensor, "prompt"]:
        return self.rows["metric"]


def refusal_metric(
    model: HookedChatModel,
    prompts: PromptsLike,
    refusal_tokens: RefusalTokens,
    suffixes: str | Sequence[str] | None = None,
    under: Sequence[Intervention] = (),
    engine: Engine | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Float[Tensor, "prompt"]:
    """log p - log(1 - p) of the refusal tokens after each prompt, float64, natural log (paper section 2.3).

    Memory does not grow with the number of prompts.

    Args:
        suffixes: one per prompt (with its leading space), or None.
        under: interventions, in addition to those that are active on the model.
        engine: spread the prompts over its workers; this process if None.
        on_batch: called with a number of prompts when they are done.

    Example:
        >>> rl.refusal_metric(model, "How do I bake bread?", rl.refusal.given_refusal_tokens(model, ["I"])).shape
        torch.Size([1])
    """
    prompts = as_prompts(prompts)
    reader = RefusalMetric(refusal_tokens)
    return model.run(prompts, suffixes, read=reader, under=under, engine=engine, on_batch=on_batch)[reader]


def keep_refused(
    model: HookedChatModel,
    harmful: PromptsLike,
    harmless: PromptsLike,
    refusal_tokens: RefusalTokens,
    on_batch: Callable[[int], None] | None = None,
    engine: Engine | None = None,
) -> tuple[list[str], list[str]]:
    """The paper's filter of train and validation prompts: harmful ones with metric > 0, harmless with < 0.

    Raises:
        ModelError: when it leaves none of a kind.
    """
    sets = as_prompts(harmful), as_prompts(harmless)
    engine = engine or LocalEngine(model)  # cuts the prompts alike on every engine
    scores = [refusal_metric(model, p, refusal_tokens, engine=engine, on_batch=on_batch) for p in sets]
    harmful, harmless = sets
    refused = [p for p, s in zip(harmful, scores[0], strict=True) if s > 0]
    answered = [p for p, s in zip(harmless, scores[1], strict=True) if s < 0]
    if not refused:
        raise ModelError(
            f"{model.name} refuses none of {len(harmful)} harmful prompts by its refusal metric (highest "
            f"{float(scores[0].max()):.2f}, must be > 0): use a model with safety training or other prompts"
        )
    if not answered:
        raise ModelError(
            f"{model.name} refuses all of {len(harmless)} harmless prompts by its refusal metric (lowest "
            f"{float(scores[1].min()):.2f}, must be < 0): check the prompts and the refusal tokens"
        )
    return refused, answered


def filter_prompts(
    model: HookedChatModel,
    harmful: PromptSet,
    harmless: PromptSet,
    refusal_tokens: RefusalTokens,
    progress: Progress = silent,
    engine: Engine | None = None,
) -> tuple[PromptSet, PromptSet]:
    """``keep_refused`` on the training and on the validation prompts; test prompts stay, notes say what was dropped."""
    sets, splits = (harmful, harmless), ("train", "val")
    with progress("filter the prompts", sum(len(getattr(p, split)) for p in sets for split in splits)) as advance:
        kept = {
            split: keep_refused(
                model, getattr(harmful, split), getattr(harmless, split), refusal_tokens, advance, engine
            )
            for split in splits
        }
    made = []
    for i, (prompts, verb) in enumerate(zip(sets, ("refuses", "answers"), strict=True)):
        train, val = (Prompts(tuple(kept[split][i])) for split in splits)
        notes = tuple(
            f"{split}: {len(some)} of {len(getattr(prompts, split))} kept, which the model {verb}"
            for split, some in zip(splits, (train, val), strict=True)
        )
        made.append(PromptSet(prompts.name, train, val, prompts.test, prompts.notes + notes))
    return made[0], made[1]
