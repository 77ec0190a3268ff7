"""Whether a suffix works through the heads' attention to it: cut edges, patch heads, restore the direction, each
against random heads of the same layers and a norm-matched placebo."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..attribution.causal import wide_dtype
from ..hooks.attention import AttentionKnockout, HeadsIntervention, every_head, random_heads
from ..hooks.base import Intervention
from ..hooks.interchange import Interchange, InterchangeHeads, InterchangePattern, InterchangeWrites, orthogonal_like
from ..hooks.interventions import NormMatchedPlacebo
from ..hooks.readout import Readout
from ..models.backend import PrefixCache
from ..models.batching import by_length, numbered
from ..models.chat import Tokens
from ..models.model import HookedChatModel
from ..records.direction import Direction, DirectionLike, as_direction
from ..records.labels import Head, as_heads
from ..refusal.phrases import is_refusal
from ..refusal.records import RefusalTokens
from ..tensors import refusal_log_odds, wide
from .causal_records import CausalTest, CausalTests
from .observation_records import Observation

# What of a head is taken from the other run.
PATCHES = ("pattern", "output", "r̂ component")
# Of one batch, padding included: passes run the last few positions only, so it takes many prompts to fill one.
BATCH_TOKENS = 4096


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
    tests.append(bench.restore())
    return CausalTests(
        tuple(tests),
        plain.metric,
        suffixed.metric,
        named,
        draws,
        plain.refused,
        suffixed.refused,
        refusal_tokens.threshold,
    )


@dataclass(frozen=True)
class _Run:
    """One batch of one condition. Everything here acts on post-instruction positions only, so what stands before them
    is run once and kept as keys and values, where the model's attention allows it (``backend.supports_prefix``); and a
    pass begins at the first layer in which something acts."""

    model: HookedChatModel
    tokens: Tokens
    tail: Tokens
    prefix: PrefixCache | None = None
    prefix_mask: Bool[Tensor, "batch prefix"] | None = None

    @classmethod
    def of(cls, model: HookedChatModel, tokens: Tokens) -> _Run:
        tokens = numbered(tokens)  # values of an interchange have the batch's own rows
        if not model.backend.supports_prefix or model.counts_positions:
            return cls(model, tokens, tokens)
        ids, mask, n = tokens.ids, tokens.mask, tokens.n_post
        tail = Tokens(ids[:, -n:], mask[:, -n:], tokens.spans, tokens.indices)
        return cls(model, tokens, tail, model.prefix_cache(ids[:, :-n], mask=mask[:, :-n]), mask[:, :-n])

    @cached_property
    def resid(self) -> list[Float[Tensor, "batch pos d_model"]]:
        """resid_pre of every layer without an intervention, at the positions that are run."""
        names = [f"blocks.{layer}.hook_resid_pre" for layer in range(self.model.n_layers)]
        return list(self.cache(names, whole=True).values())

    def logits(self, layer: int = 0) -> Float[Tensor, "batch vocab"]:
        """Logits of the last position under the active interventions, which act from ``layer`` on."""
        start = (layer, self.resid[layer]) if layer else None
        return self.model.logits(self.tail, start=start, prefix=self.prefix, prefix_mask=self.prefix_mask)[:, -1]

    def cache(self, names: Iterable[str], whole: bool = False) -> dict[str, Tensor]:
        """Activations at the post-instruction positions, or at all that are run."""
        last = None if whole else slice(-self.tokens.n_post, None)
        return self.model.cache(self.tail, names, last, prefix=self.prefix, prefix_mask=self.prefix_mask)

    def last_z(self) -> Float[Tensor, "layer batch last head d_head"]:
        """z at the post-instruction positions, float32 or better."""
        model = self.model
        found = self.cache([f"blocks.{layer}.attn.hook_z" for layer in range(model.n_layers)])
        rows = [wide(x).reshape(*x.shape[:2], model.n_heads, model.d_head) for x in found.values()]
        return torch.stack(rows).to(wide_dtype(model))


@dataclass(frozen=True)
class _Pair:
    """One batch in both runs."""

    rows: list[int]
    clean: _Run
    dirty: _Run


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
        groups = by_length(dirty.lengths.tolist(), lambda n, width, real: n * width <= BATCH_TOKENS)
        self.pairs = [_Pair(rows, *(_Run.of(model, tokens.take(rows)) for tokens in (clean, dirty))) for rows in groups]

    def test(
        self,
        name: str,
        kind: str,
        heads: tuple[Head, ...],
        draws: tuple[tuple[Head, ...], ...] = (),
        *,
        reverse: bool = False,
    ) -> CausalTest:
        """The intervention on ``heads``, on each draw of random heads, and its placebo."""
        grid = torch.empty(2 + len(draws), self.n, dtype=torch.float64)
        metric, placebo, controls = grid[0], grid[1], grid[2:]
        for pair in self.pairs:
            into, source = (pair.clean, pair.dirty) if reverse else (pair.dirty, pair.clean)
            make = self._maker(kind, into, source, sorted({layer for layer, _ in heads}))
            metric[pair.rows] = self._metric(into, make(heads))
            placebo[pair.rows] = self._metric(into, self._placebo(into, make(heads)))
            for control, draw in zip(controls, draws, strict=True):
                control[pair.rows] = self._metric(into, make(draw))
        return CausalTest(name, reverse, metric, controls, placebo)

    def refused(self, max_new_tokens: int, *interventions: Intervention) -> Bool[Tensor, "prompt"]:
        """Whether the reply of the suffixed run has a refusal phrase."""
        found = torch.empty(self.n, dtype=torch.bool)
        for pair in self.pairs:
            with self.model.hooks(*interventions):
                replies = self.model.generate(pair.dirty.tokens, max_new_tokens, batch_size=len(pair.dirty.tokens))
            found[pair.rows] = torch.tensor([is_refusal(reply) for reply in replies])
        return found

    def under(self, *interventions: Intervention) -> Float[Tensor, "prompt"]:
        """Metric of the suffixed run."""
        found = torch.empty(self.n, dtype=torch.float64)
        for pair in self.pairs:
            found[pair.rows] = self._metric(pair.dirty, *interventions)
        return found

    def clean(self) -> Float[Tensor, "prompt"]:
        """Metric of the clean run."""
        found = torch.empty(self.n, dtype=torch.float64)
        for pair in self.pairs:
            found[pair.rows] = self._metric(pair.clean)
        return found

    def _metric(self, run: _Run, *interventions: Intervention | tuple[str, Callable]) -> Float[Tensor, "batch"]:
        layer = _first_layer(self.model, interventions)
        if layer:
            _ = run.resid  # read before anything acts
        with self.model.hooks(*interventions):
            return refusal_log_odds(run.logits(layer), self.ids).cpu()

    def _maker(
        self, kind: str, into: _Run, source: _Run, layers: list[int]
    ) -> Callable[[tuple[Head, ...]], HeadsIntervention]:
        """heads -> the intervention of this kind on ``into``; what it takes from ``source`` is read once."""
        if kind == "cut":
            return AttentionKnockout
        if kind == "pattern":
            names = {layer: f"blocks.{layer}.attn.hook_pattern" for layer in layers}
            cached = source.cache(names.values(), whole=True)
            patterns = {layer: cached[name][:, :, -self.n_post :] for layer, name in names.items()}
            columns = matching_columns(into.tokens, source.tokens)
            return lambda heads: InterchangePattern(heads, patterns, columns)
        z = source.last_z()
        if kind == "output":
            return lambda heads: InterchangeHeads(heads, z)
        along = torch.einsum("lbqhd,lhd->lhbq", z, self.readout.heads.to(z))
        scales = {layer: site for layer, site in enumerate(self.readout.scale_sites) if site}
        cached = source.cache(scales.values()) if scales else {}
        for layer, site in scales.items():
            along[layer] = along[layer] / wide(cached[site][..., 0])
        return lambda heads: InterchangeWrites(heads, self.readout, along)

    def _placebo(self, run: _Run, intervention: HeadsIntervention) -> NormMatchedPlacebo:
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
            before: dict[str, Tensor] = {}
            # Hooks act in the order given, so this one sees the stream before each move.
            watch = [(name, partial(_keep_last, before, name, self.n_post)) for name in names[1:]]
            metric[pair.rows] = self._metric(pair.dirty, *watch, Interchange(r, wanted))
            moves = {n: (wanted[i] - wide(before[n]).to(r) @ r)[..., None] * other for i, n in enumerate(names) if i}
            placebo[pair.rows] = self._metric(pair.dirty, NormMatchedPlacebo(moves))
        return CausalTest("restore r̂", False, metric, torch.empty(0, self.n, dtype=torch.float64), placebo)


def _first_layer(model: HookedChatModel, interventions: Sequence[object]) -> int:
    """The first layer in which one of them acts, as far as it is known; 0 elsewhere."""
    found: list[int] = []
    for one in interventions:
        if isinstance(one, HeadsIntervention):
            found += one.by_layer(model)
        elif isinstance(one, NormMatchedPlacebo):
            found += [int(name.split(".")[1]) for name in one.changes]
        else:
            return 0
    return min(found, default=0)


def _keep_last(kept: dict[str, Tensor], name: str, n: int, x: Tensor, hook: object) -> None:
    kept[name] = x[:, -n:].clone()


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
