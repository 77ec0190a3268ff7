"""The refusal metric, and the prompt filter that uses it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from ..data.prompts import Prompts, PromptSet, PromptsLike, as_prompts
from ..engines.base import Engine
from ..engines.local import LocalEngine
from ..errors import ModelError, PromptError
from ..hooks.base import Intervention, Model
from ..hooks.readers import Reader
from ..models.model import HookedChatModel
from ..progress import Progress, silent
from ..tensors import refusal_log_odds
from .records import RefusalTokens
from .tokens import TokensLike, as_refusal_tokens

DRAW = 32  # spare prompts read at a time, at least


@dataclass(eq=False)
class RefusalMetric(Reader[Tensor]):
    """log p - log(1 - p) of the refusal tokens after each prompt, for ``model.run``."""

    tokens: TokensLike
    needs_logits: ClassVar[bool] = True
    can_pack: ClassVar[bool] = True

    def begin(self, model: Model, tokens: Any) -> None:
        super().begin(model, tokens)
        self.tokens = as_refusal_tokens(model, self.tokens)

    def values(self, model: Model, batch: Any, logits: Tensor | None) -> dict[str, Tensor]:
        assert logits is not None
        return {"metric": refusal_log_odds(logits, self.tokens.ids)}

    def result(self) -> Float[Tensor, "prompt"]:
        return self.rows["metric"]


def refusal_metric(
    model: HookedChatModel,
    prompts: PromptsLike,
    refusal_tokens: TokensLike,
    suffixes: str | Sequence[str] | None = None,
    under: Sequence[Intervention] = (),
    engine: Engine | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Float[Tensor, "prompt"]:
    """Measure log p - log(1 - p) of the refusal tokens after each prompt, float64, natural log (paper section 2.3).

    Memory does not grow with the number of prompts.

    Args:
        refusal_tokens: ``RefusalTokens``, what ``find_direction`` returned, ids, or text that is one token.
        suffixes: one per prompt (with its leading space), or None.
        under: interventions, in addition to those that are active on the model.
        engine: spread the prompts over its workers; this process if None.

    Example:
        >>> rl.refusal_metric(model, "How do I bake bread?", "I").shape
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
    """Keep the harmful prompts whose metric is above the tokens' threshold and the harmless ones below it (0 for tokens
    that are not calibrated, as in the paper); ModelError when none of a kind is left."""
    keep = partial(_kept, model, refusal_tokens, engine, on_batch)
    return keep(as_prompts(harmful), True).found(), keep(as_prompts(harmless), False).found()


def filter_prompts(
    model: HookedChatModel,
    harmful: PromptSet,
    harmless: PromptSet,
    refusal_tokens: RefusalTokens,
    progress: Progress = silent,
    engine: Engine | None = None,
) -> tuple[PromptSet, PromptSet]:
    """``keep_refused`` on training and validation prompts; dropped ones are replaced from the spare prompts.

    Spare prompts are read until as many are kept as there were, or none is left. Test prompts stay unchanged, and
    notes say how many were kept.

    Raises:
        ModelError: when none of a kind is left.

    Example:
        >>> tokens = rl.find_refusal_tokens(model, data.harmful, data.harmless)
        >>> rl.refusal.filter_prompts(model, data.harmful, data.harmless, tokens)[0].notes[0]
        'train: 48 of 48 kept, which the model refuses'
    """
    sets = (harmful, True, "refuses"), (harmless, False, "answers")
    made = []
    with progress("filter the prompts", sum(len(p.train) + len(p.val) for p, _, _ in sets)) as advance:
        keep = partial(_kept, model, refusal_tokens, engine, advance)
        for prompts, refused, verb in sets:
            train = keep(prompts.train, refused, prompts.spare_train)
            seen = set(train.seen)
            val = keep(prompts.val, refused, [p for p in prompts.spare_val if p not in seen])
            notes = tuple(
                f"{split}: {len(some.kept)} of {len(some.seen)} kept, which the model {verb}"
                for split, some in (("train", train), ("val", val))
            )
            used = [Prompts(tuple(some.found())) for some in (train, val)]
            made.append(PromptSet(prompts.name, used[0], used[1], prompts.test, prompts.notes + notes))
    return made[0], made[1]


@dataclass(frozen=True)
class _Kept:
    """Prompts that were read, their metrics, and those of them that are kept."""

    model: str
    threshold: float
    refused: bool
    seen: list[str]
    metrics: list[float]
    kept: list[str]

    def found(self) -> list[str]:
        """What is kept; an error where it is nothing."""
        if self.kept:
            return self.kept
        if self.refused:
            raise ModelError(
                f"{self.model} refuses none of {len(self.seen)} harmful prompts by its refusal metric (highest "
                f"{max(self.metrics):.2f}, must be > {self.threshold:.3g}): use a model with safety training or other "
                "prompts"
            )
        raise ModelError(
            f"{self.model} refuses all of {len(self.seen)} harmless prompts by its refusal metric (lowest "
            f"{min(self.metrics):.2f}, must be < {self.threshold:.3g}): check the prompts and the refusal tokens"
        )


def _kept(
    model: HookedChatModel,
    tokens: RefusalTokens,
    engine: Engine | None,
    on_batch: Callable[[int], None] | None,
    prompts: Sequence[str],
    refused: bool,
    spare: Sequence[str] = (),
) -> _Kept:
    """Read ``prompts``, then ``spare`` ones until as many are kept."""
    engine = engine or LocalEngine(model)  # cuts the prompts alike on every engine
    threshold, wanted, pool = tokens.threshold, len(prompts), [*prompts, *spare]
    done = _Kept(model.name, threshold, refused, [], [], [])
    while len(done.kept) < wanted and len(done.seen) < len(pool):
        size = max(DRAW, wanted - len(done.kept)) if done.seen else wanted
        some = pool[len(done.seen) :][:size]
        found = refusal_metric(model, some, tokens, engine=engine, on_batch=on_batch).tolist()
        done.seen.extend(some)
        done.metrics.extend(found)
        kept = [p for p, m in zip(some, found, strict=True) if (m > threshold if refused else m < threshold)]
        done.kept.extend(kept[: wanted - len(done.kept)])
    return done


def refused_prompts(
    model: HookedChatModel, prompts: list[str], tokens: RefusalTokens, limit: int | None
) -> tuple[list[str], int]:
    """(the refused prompts, the first ``limit`` of them; how many prompts were read to find them)."""
    most = limit or len(prompts)
    read = _kept(model, tokens, None, None, prompts[:most], True, prompts[most:])
    if not read.kept:
        raise PromptError(
            f"no refused prompt is left: {model.name} refuses none of {len(prompts)} prompts without a suffix (highest "
            f"refusal metric {max(read.metrics):.2f}, must be > {tokens.threshold:.3g}); use prompts that it refuses"
        )
    return read.kept, read.seen.index(read.kept[-1]) + 1 if len(read.kept) == limit else len(prompts)
