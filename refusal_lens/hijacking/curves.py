"""How many heads a suffix needs: edges cut head by head, in the order of attribution, greedily and at random."""

import random
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial

import torch
from jaxtyping import Shaped
from torch import Tensor

from ..attribution.components import heads as head_contributions
from ..data.prompts import PromptsLike, as_prompts
from ..hooks.attention import AttentionKnockout, by_layer, every_head
from ..models.model import HookedChatModel
from ..records.direction import DirectionLike, as_direction
from ..records.labels import Head
from ..refusal.records import RefusalTokens
from .causal import Bench
from .curve_records import HeadCurves

GREEDY, TRIED = 8, 24  # heads chosen greedily; among this many, the first by attribution
READ, REPLIED = 3, 32  # counts between none and all, and prompts, at which replies are read


def head_curves(
    model: HookedChatModel,
    prompts: PromptsLike,
    suffix: str,
    random_suffixes: Sequence[str],
    direction: DirectionLike,
    refusal_tokens: RefusalTokens,
    *,
    choosing: PromptsLike,
    choosing_random: Sequence[str],
    n_random: int = 3,
    max_new_tokens: int = 0,
    seed: int = 0,
) -> HeadCurves:
    """Measure the refusal metric by number of heads cut off from the suffix, and by number of heads that alone see it.

    Heads are ordered on ``choosing``: by attribution (how much their write along r̂ at the last position falls from
    random tokens to the suffix), greedily (eight times the head whose cut raises the mean metric most, among the first
    24 by attribution; the others follow by attribution), and at random within layers, so that the n-th heads by
    attribution and at random lie in the same layer.

    Args:
        random_suffixes: random tokens of equal length, one text per prompt.
        choosing: other prompts, with random tokens of their own.
        n_random: number of random orders.
        max_new_tokens: length of replies to the first 32 prompts, by attribution and in one random order, at none, at
            three numbers between, and at all heads; 0 for no replies.
        seed: of these.

    Example:
        >>> some, others, tokens = data.harmful.test[:2].texts, data.harmful.val[:2].texts, found.refusal_tokens
        >>> drawn = [rl.hijacking.random_controls(model.chat, texts, " please").texts for texts in (some, others)]
        >>> more = {"choosing": others, "choosing_random": drawn[1], "n_random": 1}
        >>> curves = rl.hijacking.head_curves(model, some, " please", drawn[0], found, tokens, **more)
        >>> curves.counts, curves.orders
        ((0, 1, 2, 4, 8, 16, 20), ('attribution', 'greedy', 'random 1'))
    """
    requests, others, direction = as_prompts(prompts), as_prompts(choosing), as_direction(direction)
    ranked = by_attribution(model, others, suffix, choosing_random, direction)
    greedy = _greedy(cutting(Bench(model, others, None, suffix, direction, refusal_tokens, seed).under), ranked)
    rng = random.Random(seed)
    orders = [ranked, greedy, *(within_layers(ranked, rng) for _ in range(n_random))]
    bench = Bench(model, requests, None, suffix, direction, refusal_tokens, seed)
    beside = Bench(model, requests, random_suffixes, suffix, direction, refusal_tokens, seed)
    counts = doubling(len(ranked))
    metrics, few, replied = cutting(bench.under), (), None
    if max_new_tokens:
        between = range(1, len(counts) - 1)
        few = tuple(counts[i] for i in sorted({0, *between[:: max(1, -(-len(between) // READ))], len(counts) - 1}))
        some = Bench(model, requests[:REPLIED], None, suffix, direction, refusal_tokens, seed)
        replied = _curves(cutting(partial(some.refused, max_new_tokens)), (orders[0], *orders[2:3]), few)
    return HeadCurves(
        counts=counts,
        metric=_curves(metrics, orders, counts),
        rankings=(ranked, greedy),
        plain=bench.clean(),
        random=beside.clean(),
        suffixed=metrics(()),
        held=bench.test("attention held", "pattern", ranked),
        held_random=beside.test("attention held", "pattern", ranked),
        n_chosen=len(others),
        threshold=refusal_tokens.threshold,
        reply_counts=few,
        replied=replied,
    )


def doubling(n: int) -> tuple[int, ...]:
    """0, 1, 2, 4 ... and ``n``."""
    return tuple(sorted({0, n, *(1 << i for i in range(n.bit_length()) if 1 << i < n)}))


def by_attribution(
    model: HookedChatModel, prompts: list[str], suffix: str, random_suffixes: Sequence[str], direction: DirectionLike
) -> tuple[Head, ...]:
    """All heads, beginning with those whose write along r̂ falls most from random tokens to the suffix."""
    before, after = (
        head_contributions(model, prompts, direction, suffixes=texts).values.mean(-1)
        for texts in (random_suffixes, [suffix] * len(prompts))
    )
    every = every_head(model)
    return tuple(every[i] for i in (before - after).flatten().argsort(descending=True).tolist())


def within_layers(heads: Sequence[Head], rng: random.Random) -> tuple[Head, ...]:
    """Another order of the heads, with the same layer at every place."""
    own = by_layer(heads)
    for some in own.values():
        rng.shuffle(some)
    return tuple((layer, own[layer].pop()) for layer, _ in heads)


def cutting(measure: Callable[..., Tensor]) -> Callable[[Iterable[Head]], Tensor]:
    """What is measured with some heads cut off from the suffix, each set once."""

    @cache
    def of(heads: frozenset[Head]) -> Tensor:
        return measure(AttentionKnockout(tuple(sorted(heads)))) if heads else measure()

    return lambda heads: of(frozenset(heads))


def _curves(
    measured: Callable[[Iterable[Head]], Tensor], orders: Sequence[Sequence[Head]], counts: Sequence[int]
) -> Shaped[Tensor, "way order count prompt"]:
    """With the first heads of each order cut off, and with all heads but these."""
    every = set(orders[0])
    cut = [torch.stack([measured(order[:n]) for n in counts]) for order in orders]
    only = [torch.stack([measured(every - {*order[:n]}) for n in counts]) for order in orders]
    return torch.stack([torch.stack(cut), torch.stack(only)])


def _greedy(metrics: Callable[[Iterable[Head]], Tensor], ranked: tuple[Head, ...]) -> tuple[Head, ...]:
    """The heads by greedy choice, then the others in their order."""
    chosen: list[Head] = []
    for _ in range(min(GREEDY, len(ranked))):
        tried = [head for head in ranked[:TRIED] if head not in chosen]
        chosen.append(max(tried, key=lambda head: float(metrics([*chosen, head]).mean())))
    return (*chosen, *(head for head in ranked if head not in chosen))
