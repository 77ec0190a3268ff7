"""Many suffixes: each beside random tokens of its length, with the causes of every head's change of attention."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.prompts import PromptsLike, as_prompts
from ..data.suffixes import SuffixSet
from ..engines.base import Engine
from ..hooks.attention_readers import Heads, RegionShare
from ..models.model import HookedChatModel
from ..progress import Progress, automatic
from ..records.direction import Direction, DirectionLike, as_direction
from ..records.labels import Head, as_heads
from ..records.store import Store, content_key
from ..refusal.metric import RefusalMetric
from ..refusal.records import RefusalTokens
from .controls import random_controls
from .investigation import fitting
from .many_records import ManySuffixes
from .shifts import attention_shift


@dataclass(frozen=True)
class _Beside:
    """One suffix and its random tokens after all prompts, as work for an engine."""

    prompts: tuple[str, ...]
    direction: Direction
    tokens: RefusalTokens
    heads: tuple[Head, ...]
    seed: int

    def prepare(self, model: HookedChatModel) -> None:
        """Items share nothing."""

    def run(self, model: HookedChatModel, state: None, item: tuple[int, str]) -> dict[str, Tensor]:
        """Values of the suffix ``item[1]``; ``item[0]``, its place, seeds its random tokens."""
        index, text = item
        prompts, writes = list(self.prompts), Heads(self.direction)
        metric, share = RefusalMetric(self.tokens), RegionShare(self.heads)
        drawn = random_controls(model.chat, prompts, text, self.seed + 1000 * (index + 1)).texts
        after = model.run(prompts, text, read=[writes, metric, share])
        before = model.run(prompts, drawn, read=[writes, metric])
        parts = attention_shift(model, prompts, text, drawn, receivers=(), plain=False).parts
        return {
            "metric": after[metric],
            "random_metric": before[metric],
            "strength": after[share].top.double(),
            "causes": torch.stack([parts[:, :, layer, head] for layer, head in self.heads]).mean(0),
            "parts": parts.mean(-1),
            "drops": (before[writes] - after[writes]).mean(-1).float(),
        }


def many_suffixes(
    model: HookedChatModel,
    prompts: PromptsLike,
    suffixes: SuffixSet,
    direction: DirectionLike,
    heads: Sequence[Head | str],
    refusal_tokens: RefusalTokens,
    *,
    seed: int = 0,
    store: Store | None = None,
    engine: Engine | None = None,
    progress: Progress = automatic,
) -> ManySuffixes:
    """Measure every suffix beside random tokens: refusals, dominance, and why each head's attention moves.

    Suffixes that do not fit some prompt are left out and noted. Cost: about twice the forward passes of the two
    conditions; memory is that of one suffix.

    Args:
        prompts: harmful requests that the model refuses.
        heads: the top heads, chosen on other prompts (``attribution.choose_heads``).
        seed: of the random tokens, drawn for each prompt.
        store: saves each suffix's values, and returns those of an earlier run with the same inputs.
        engine: spreads the suffixes over its workers; this process if None.

    Raises:
        PromptError: no suffix fits.
        ModelError: a model whose scores are not q · k of its hook points.

    Example:
        >>> suffixes = rl.SuffixSet.load(rl.organism.suffixes())
        >>> prompts, tokens = data.harmful.test[:3].texts, found.refusal_tokens
        >>> many = rl.hijacking.many_suffixes(model, prompts, suffixes, found, ["L1H0"], tokens)
        >>> many.sizes["suffix"], many.grade(8)
        (9, 'not shown')
    """
    requests, store, notes = as_prompts(prompts), store or Store(None), list(suffixes.notes)
    direction, named = as_direction(direction), as_heads(heads)
    model.check_direction(direction)
    suffixes = fitting(model, requests, suffixes, 0, notes)
    work = _Beside(tuple(requests), direction, refusal_tokens, named, seed)
    shared = content_key(
        "many", model.fingerprint, str(model.dtype), model.chat.render("{}"), requests, direction.unit, named,
        refusal_tokens, seed,
    )  # fmt: skip
    names = [(f"many/{i:04d}", content_key(shared, i, item.text)) for i, item in enumerate(suffixes)]
    found = [store.get(*name) for name in names]
    items = [(i, item.text) for i, item in enumerate(suffixes) if found[i] is None]
    made = engine.each("many", work, items) if engine else (work.run(model, None, item) for item in items)
    with progress("suffixes beside random tokens", len(items)) as advance:
        for (i, _), values in zip(items, made, strict=True):
            found[i] = store.put(names[i][0], values, names[i][1])
            advance(1)
    fields: dict[str, Any] = {name: torch.stack([one[name] for one in found]) for name in found[0]}
    fields |= {"threshold": refusal_tokens.threshold, "notes": tuple(notes)}
    return ManySuffixes(direction, suffixes.items, named, **fields)
