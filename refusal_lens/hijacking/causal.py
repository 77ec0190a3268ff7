"""Whether a suffix works through the heads' attention to it: cut edges, patch heads, restore the direction, each
against random heads of the same layers and a norm-matched placebo."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..attribution.causal import wide_dtype
from ..hooks.attention import AttentionKnockout, HeadsIntervention, every_head, random_heads
from ..hooks.base import Intervention
from ..hooks.interchange import Interchange, InterchangeHeads, InterchangePattern, InterchangeWrites, orthogonal_like
from ..hooks.interventions import NormMatchedPlacebo
from ..hooks.readers import Cache
from ..hooks.readout import Readout
from ..models.batching import numbered
from ..models.chat import Tokens
from ..models.endings import Ending, rows_of_batches
from ..models.model import HookedChatModel
from ..records.direction import Direction, DirectionLike, as_direction
from ..records.labels import Head, as_heads
from ..refusal.phrases import is_refusal
from ..refusal.records import RefusalTokens
from ..tensors import wide
from .causal_records import CausalTest, CausalTests
from .observation_records import Observation

# What of a head is taken from the other run.
PATCHES = ("pattern", "output", "r̂ component")


def causal_tests(
    model: HookedChatModel,
    plain: Observation,
    suffixed: Observation,
    direction: DirectionLike,
    heads: Sequence[Head | str],
    refusal_tokens: RefusalTokens,
    *,
    n_random: int = 3,
    max_new_tokens: int = 0,
    seed: int = 0,
) -> CausalTests:
    """Run the causal tests of one suffix (docs/hijacking.md says what each shows).

    Args:
        plain, suffixed: observations of the same prompts.
        heads: the top heads, chosen on other prompts.
        n_random: draws of random heads of the same layers.
        max_new_tokens: length of replies under the cuts; 0 for none.
        seed: of these draws and of the placebo's directions.
    """
    named, direction = as_heads(heads), as_direction(direction)
    rng, every = random.Random(seed), every_head(model)
    draws = tuple(draw for _ in range(n_random) if (draw := random_heads(model, named, rng)))
    firsts = [tuple(head for head in draw if head[0] == named[0][0])[:1] for draw in draws]
    others = tuple(head for head in every if head not in named)
    bench = Bench(model, plain.prompts, plain.suffixes, suffixed.suffixes, direction, refusal_tokens, seed)

    def with_replies(test: CausalTest, cut: tuple[Head, ...]) -> CausalTest:
        said = bench.refused(max_new_tokens, AttentionKnockout(cut)).tolist() if max_new_tokens else ()
        return replace(test, refused=tuple(said))

    tests = [
        with_replies(bench.test("cut top heads", "cut", named, draws), named),
        bench.test("cut the first top head", "cut", named[:1], tuple(filter(None, firsts))),
        with_replies(bench.test("cut all heads", "cut", every), every),
        with_replies(bench.test("cut all other heads", "cut", others), others),
    ]
    for start, kind in itertools.product(("", "reverse: "), PATCHES):
        name = f"{start}patch {kind} of top heads"
        tests.append(bench.test(name, kind, named, draws, reverse=bool(start)))
    ends = plain.metric, suffixed.metric, named, draws, plain.refused, suffixed.refused
    return CausalTests((*tests, bench.restore()), *ends, refusal_tokens.threshold)


@dataclass(frozen=True)
class _Pair:
    """One batch in both runs."""

    rows: list[int]
    clean: Ending
    dirty: Ending


class Bench:
    """The prompts in batches, in the clean and in the suffixed run."""

    def __init__(
        self,
        model: HookedChatModel,
        prompts: Sequence[str],
        before: Sequence[str] | None,
        suffixes: str | Sequence[str],
        direction: Direction,
        refusal_tokens: RefusalTokens,
        seed: int,
    ):
        self.model, self.ids, self.seed = model, refusal_tokens.ids, seed
        self.readout = Readout.of(model, direction.unit)
        clean, dirty = model.tokenize(prompts, before), model.tokenize(prompts, suffixes)
        self.n, self.n_post = len(dirty), dirty.n_post
        self.pairs = [
            # Values of an interchange have the batch's own rows.
            _Pair(rows, *(Ending.of(model, numbered(tokens.take(rows)), self.n_post) for tokens in (clean, dirty)))
            for rows in rows_of_batches(dirty)
        ]

    def test(
        self, name: str, kind: str, heads: tuple[Head, ...], draws: Sequence[Sequence[Head]] = (), reverse: bool = False
    ) -> CausalTest:
        """The intervention on ``heads``, on each draw of random heads, and its placebo."""
        grid = torch.empty(2 + len(draws), self.n, dtype=torch.float64)
        for pair in self.pairs:
            into, source = (pair.clean, pair.dirty) if reverse else (pair.dirty, pair.clean)
            make = self._maker(kind, into, source, sorted({layer for layer, _ in heads}))
            acting = [make(heads), self._placebo(into, make(heads)), *map(make, draws)]
            grid[:, pair.rows] = torch.stack([into.log_odds(self.ids, one).to(grid) for one in acting])
        return CausalTest(name, reverse, grid[0], grid[2:], grid[1])

    def refused(self, max_new_tokens: int, *interventions: Intervention) -> Bool[Tensor, "prompt"]:
        """Whether the reply of the suffixed run has a refusal phrase."""

        def said(pair: _Pair) -> Tensor:
            tokens = pair.dirty.tokens
            with self.model.hooks(*interventions):
                replies = self.model.generate(tokens, max_new_tokens, batch_size=len(tokens))
            return torch.tensor([is_refusal(reply) for reply in replies])

        return self._each(said, torch.bool)

    def under(self, *interventions: Intervention) -> Float[Tensor, "prompt"]:
        """Metric of the suffixed run."""
        return self._each(lambda pair: pair.dirty.log_odds(self.ids, *interventions))

    def clean(self) -> Float[Tensor, "prompt"]:
        """Metric of the clean run."""
        return self._each(lambda pair: pair.clean.log_odds(self.ids))

    def _each(self, measure: Callable[[_Pair], Tensor], dtype: torch.dtype = torch.float64) -> Tensor:
        found = torch.empty(self.n, dtype=dtype)
        for pair in self.pairs:
            found[pair.rows] = measure(pair)
        return found

    def _maker(
        self, kind: str, into: Ending, source: Ending, layers: list[int]
    ) -> Callable[[Sequence[Head]], HeadsIntervention]:
        """heads -> the intervention of this kind on ``into``; what it takes from ``source`` is read once."""
        if kind == "cut":
            return AttentionKnockout
        if kind == "pattern":
            names = {layer: f"blocks.{layer}.attn.hook_pattern" for layer in layers}
            cached = source.cache(names.values(), whole=True)
            patterns = {layer: cached[name][:, :, -self.n_post :] for layer, name in names.items()}
            columns = matching_columns(into.tokens, source.tokens)
            return lambda heads: InterchangePattern(heads, patterns, columns)
        cached = source.cache([f"blocks.{layer}.attn.hook_z" for layer in range(self.model.n_layers)])
        shape = self.model.n_heads, self.model.d_head
        z = torch.stack([wide(x).reshape(*x.shape[:2], *shape) for x in cached.values()]).to(wide_dtype(self.model))
        if kind == "output":
            return lambda heads: InterchangeHeads(heads, z)
        along = torch.einsum("lbqhd,lhd->lhbq", z, self.readout.heads.to(z))
        scales = {layer: site for layer, site in enumerate(self.readout.scale_sites) if site}
        cached = source.cache(scales.values()) if scales else {}
        for layer, site in scales.items():
            along[layer] = along[layer] / wide(cached[site][..., 0])
        return lambda heads: InterchangeWrites(heads, self.readout, along)

    def _placebo(self, run: Ending, intervention: HeadsIntervention) -> NormMatchedPlacebo:
        """A change of attention's output in a random direction, as large as the one that ``intervention`` makes at
        each layer with such a head, prompt and post-instruction position."""
        names = [f"blocks.{layer}.hook_attn_out" for layer in intervention.by_layer(self.model)]
        before = run.cache(names)
        with self.model.hooks(intervention):
            after = run.cache(names)
        return NormMatchedPlacebo.between(before, after, self.seed + 1)

    def restore(self) -> CausalTest:
        """Keep the suffix, and give the post-instruction positions the clean run's component along r̂ at every layer;
        the placebo makes the same moves along a random direction."""
        metric, placebo = torch.empty(2, self.n, dtype=torch.float64)
        r = self.readout.vector
        other = orthogonal_like(r, self.seed + 2)
        names = [f"blocks.{layer}.hook_resid_pre" for layer in range(self.model.n_layers)]
        for pair in self.pairs:
            cached = pair.clean.cache(names)
            wanted = torch.stack([wide(cached[name]).to(r) @ r for name in names])
            watch = Cache(names[1:])
            watch.where = slice(-self.n_post, None)
            # Hooks act in the order given, so these see the stream before each move.
            seeing = watch.hooks(self.model, pair.dirty.tail)
            metric[pair.rows] = pair.dirty.log_odds(self.ids, *seeing, Interchange(r, wanted))
            before = {name: wide(x).to(r) @ r for name, x in watch.kept.items()}
            moves = {n: (wanted[i] - before[n])[..., None] * other for i, n in enumerate(names) if i}
            placebo[pair.rows] = pair.dirty.log_odds(self.ids, NormMatchedPlacebo(moves))
        return CausalTest("restore r̂", False, metric, torch.empty(0, self.n, dtype=torch.float64), placebo)


def matching_columns(into: Tokens, source: Tokens) -> Int[Tensor, "batch src"]:
    """Which column of ``source`` holds the token that stands at each column of ``into``; -1 for tokens that only
    ``into`` has (a suffix) and for padding. Both hold the same instructions; suffixes of one length are matched."""
    columns = torch.full(into.ids.shape, -1, dtype=torch.long, device=into.ids.device)
    ends = into.ids.shape[1], source.ids.shape[1]
    for i, (a, b) in enumerate(zip(into.spans, source.spans, strict=True)):
        starts = ends[0] - int(into.lengths[i]), ends[1] - int(source.lengths[i])
        head, tail = min(a.instruction[1], b.instruction[1]), a.template_post[1] - a.template_post[0]
        columns[i, starts[0] : starts[0] + head] = torch.arange(starts[1], starts[1] + head)
        if a.suffix == b.suffix:
            tail += a.suffix[1] - a.suffix[0]
        columns[i, ends[0] - tail :] = torch.arange(ends[1] - tail, ends[1])
    return columns
