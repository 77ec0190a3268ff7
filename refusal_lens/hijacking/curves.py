"""How many heads a suffix needs: edges cut head by head, in the order of attribution, greedily and at random."""

import random
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.components import heads as head_contributions
from ..data.prompts import PromptsLike, as_prompts
from ..hooks.attention import AttentionKnockout, every_head
from ..models.model import HookedChatModel
from ..records.direction import DirectionLike, as_direction
from ..records.labels import Head
from ..refusal.records import RefusalTokens
from .causal import Bench
from .curve_records import HeadCurves

GREEDY, TRIED = 8, 24  # heads chosen greedily; among this many, the first by attribution


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
    small = _Metrics(Bench(model, others, None, suffix, direction, refusal_tokens, seed))
    greedy = _greedy(small, ranked)
    rng = random.Random(seed)
    orders = [ranked, greedy, *(within_layers(ranked, rng) for _ in range(n_random))]
    bench = Bench(model, requests, None, suffix, direction, refusal_tokens, seed)
    beside = Bench(model, requests, random_suffixes, suffix, direction, refusal_tokens, seed)
    counts = (0, *(1 << i for i in range(len(ranked).bit_length()) if 1 << i < len(ranked)), len(ranked))
    metrics, every = _Metrics(bench), set(ranked)
    cut = torch.stack([torch.stack([metrics(order[:n]) for n in counts]) for order in orders])
    only = torch.stack([torch.stack([metrics(every - {*order[:n]}) for n in counts]) for order in orders])
    return HeadCurves(
        counts=counts,
        metric=torch.stack([cut, only]),
        rankings=(ranked, greedy),
        plain=bench.clean(),
        random=beside.clean(),
        suffixed=metrics(()),
        held=bench.test("attention held", "pattern", ranked),
        held_random=beside.test("attention held", "pattern", ranked),
        n_chosen=len(others),
        threshold=refusal_tokens.threshold,
    )


def by_attribution(
    model: HookedChatModel, prompts: list[str], suffix: str, random_suffixes: Sequence[str], direction: DirectionLike
) -> tuple[Head, ...]:
    """All heads, beginning with those whose write along r̂ falls most from random tokens to the suffix."""
    before, after = (
        head_contributions(model, prompts, direction, suffixes=texts).values.mean(-1)
        for texts in (random_suffixes, [suffix] * len(prompts))
    )
    order = (before - after).flatten().argsort(descending=True).tolist()
    every = every_head(model)
    return tuple(every[i] for i in order)


def within_layers(heads: Sequence[Head], rng: random.Random) -> tuple[Head, ...]:
    """Another order of the heads, with the same layer at every place."""
    own: dict[int, list[Head]] = {}
    for head in heads:
        own.setdefault(head[0], []).append(head)
    for some in own.values():
        rng.shuffle(some)
    return tuple(own[layer].pop() for layer, _ in heads)


class _Metrics:
    """The metric with some heads cut off from the suffix, each set measured once."""

    def __init__(self, bench: Bench):
        self.bench = bench
        self._known: dict[frozenset[Head], Float[Tensor, "prompt"]] = {}

    def __call__(self, heads: Sequence[Head] | set[Head]) -> Float[Tensor, "prompt"]:
        key = frozenset(heads)
        if key not in self._known:
            self._known[key] = self.bench.under(AttentionKnockout(tuple(sorted(key)))) if key else self.bench.under()
        return self._known[key]


def _greedy(metrics: _Metrics, ranked: tuple[Head, ...]) -> tuple[Head, ...]:
    """The heads by greedy choice, then the others in their order."""
    chosen: list[Head] = []
    tried = list(ranked[:TRIED])
    while tried and len(chosen) < GREEDY:
        best = max(tried, key=lambda head: float(metrics([*chosen, head]).mean()))
        chosen.append(best)
        tried.remove(best)
    return (*chosen, *(head for head in ranked if head not in chosen))
