"""Many suffixes: each beside random tokens of its length, with the causes of every head's change of attention."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..data.prompts import PromptsLike, as_prompts
from ..data.suffixes import SuffixSet
from ..engines.base import Engine
from ..engines.local import LocalEngine
from ..hooks.attention_readers import Heads, RegionShare
from ..models.model import HookedChatModel
from ..progress import Progress, automatic
from ..records.direction import Direction, DirectionLike, as_direction
from ..records.labels import Head, as_heads
from ..records.store import Store, content_key
from ..refusal.metric import RefusalMetric
from ..refusal.records import RefusalTokens
from .controls import fitting, random_controls
from .many_records import ManySuffixes
from .shifts import attention_shift


def _beside(
    model: HookedChatModel,
    item: tuple[int, str],
    prompts: list[str],
    direction: Direction,
    tokens: RefusalTokens,
    heads: tuple[Head, ...],
    seed: int,
) -> dict[str, Tensor]:
    """Values of the suffix ``item[1]`` and its random tokens, which its place ``item[0]`` seeds."""
    index, text = item
    writes, metric, share = Heads(direction), RefusalMetric(tokens), RegionShare(heads)
    drawn = random_controls(model.chat, prompts, text, seed + 1000 * (index + 1)).texts
    after = model.run(prompts, text, read=[writes, metric, share])
    before = model.run(prompts, drawn, read=[writes, metric])
    parts = attention_shift(model, prompts, text, drawn, receivers=(), plain=False).parts
    return {
        "metric": after[metric],
        "random_metric": before[metric],
        "strength": after[share].top.double(),
        "causes": torch.stack([parts[:, :, layer, head] for layer, head in heads]).mean(0),
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
    requests, notes, engine = as_prompts(prompts), list(suffixes.notes), engine or LocalEngine(model)
    direction, named = as_direction(direction), as_heads(heads)
    model.check_direction(direction)
    suffixes = fitting(model, requests, suffixes, 0, notes)
    work = partial(_beside, prompts=requests, direction=direction, tokens=refusal_tokens, heads=named, seed=seed)
    shared = content_key(
        "many", model.fingerprint, str(model.dtype), model.chat.render("{}"), requests, direction.unit, named,
        refusal_tokens, seed,
    )  # fmt: skip
    names = [(f"many/{i:04d}", content_key(shared, i, item.text)) for i, item in enumerate(suffixes)]
    items = [(i, item.text) for i, item in enumerate(suffixes)]
    with progress("suffixes beside random tokens", len(items)) as advance:
        found = engine.map("many", work, items, lambda i: advance(1), store, names)
    fields: dict[str, Any] = {name: torch.stack([one[name] for one in found]) for name in found[0]}
    fields |= {"threshold": refusal_tokens.threshold, "notes": tuple(notes)}
    return ManySuffixes(direction, suffixes.items, named, **fields)
