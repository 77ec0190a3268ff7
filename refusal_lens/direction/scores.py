"""The three scores of candidate directions, as work for an engine (paper section 2.3)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..engines.base import Engine
from ..hooks.base import Intervention
from ..hooks.interventions import Ablate, Add
from ..models.chat import Tokens
from ..models.model import HookedChatModel
from ..models.packing import RestartedPack, pack_tokens, packing_holds
from ..records.direction import Direction
from ..records.stream import StreamStatistics
from ..tensors import kl_divergence, refusal_log_odds

GROUP = 8  # candidates per item: rows of one batch, and what one worker scores at a time

PLACEBOS = 4  # random directions whose KL stands beside the candidates

Reduce = Callable[[Float[Tensor, "prompt vocab"], list[int]], Tensor]


class _Packed:
    """Prompts in packed rows, copied for each intervention that a pass takes."""

    def __init__(self, model: HookedChatModel, tokens: Tokens):
        self.model, self.n = model, len(tokens)
        self.pack = RestartedPack(model, pack_tokens(tokens, model.chat.pad_id))

    def before(self, depth: int = 0) -> Float[Tensor, "prompt vocab"]:
        """Give next-token logits without intervention; keep resid_pre of the first ``depth`` layers for restarts."""
        return self.pack.before(depth)

    def run(
        self, rows: int, edit: Callable[[slice], Sequence[Intervention]], reduce: Reduce, start: int = 0
    ) -> Float[Tensor, "row prompt"]:
        """Give ``reduce(last logits, prompt indices)``, one value per prompt, under each of ``rows`` interventions.

        Args:
            edit: the interventions of a slice of the rows.
            start: restart at this layer's resid_pre, which ``before`` kept.
        """
        out = torch.empty(rows, self.n, dtype=torch.float64)
        for some in self.pack.pack.copies(rows):
            with self.model.hooks(*edit(some)):
                for pack, logits in self.pack.logits(some.stop - some.start, start):
                    indices = list(pack.indices)
                    for row, found in enumerate(logits, some.start):
                        out[row, indices] = reduce(found, indices).double().cpu()
        return out


class _Padded:
    """The same in batches by length, one intervention per pass, for models that can't run packed prompts."""

    def __init__(self, model: HookedChatModel, tokens: Tokens):
        self.model, self.n, self.tokens = model, len(tokens), tokens
        self.batches = list(model.batches(tokens))
        self.resid: list[list[Tensor]] = [[] for _ in self.batches]

    def before(self, depth: int = 0) -> Float[Tensor, "prompt vocab"]:
        names = [f"blocks.{layer}.hook_resid_pre" for layer in range(depth)]
        self.resid = [list(self.model.cache(batch, names).values()) if names else [] for batch in self.batches]
        return self.model.last_logits(self.tokens)

    def run(
        self, rows: int, edit: Callable[[slice], Sequence[Intervention]], reduce: Reduce, start: int = 0
    ) -> Float[Tensor, "row prompt"]:
        out = torch.empty(rows, self.n, dtype=torch.float64)
        for row in range(rows):
            with self.model.hooks(*edit(slice(row, row + 1))):
                for batch, resid in zip(self.batches, self.resid, strict=True):
                    first = (start, resid[start]) if start else None
                    indices = list(batch.indices)
                    logits = self.model.logits(batch, start=first)[:, -1]
                    out[row, indices] = reduce(logits, indices).double().cpu()
        return out


@dataclass(frozen=True)
class _Item:
    """One score of a few candidates."""

    score: str  # "induce", "bypass", "kl", "ablated" (bypass and KL), or "baseline" (mean metric of both kinds)
    vectors: Float[Tensor, "row d_model"]  # r̂ of each candidate; for induce coeff * r
    layer: int = 0  # for induce, the layer of all of them


@dataclass
class _State:
    """What all items share on one worker; ``baseline``: logits of the harmful and the harmless prompts."""

    harmful: _Packed | _Padded
    harmless: _Packed | _Padded
    both: _Packed | _Padded
    baseline: tuple[Float[Tensor, "harmful vocab"], Float[Tensor, "harmless vocab"]]


@dataclass(frozen=True)
class _Scores:
    """The scores of candidates (paper section 2.3) on validation prompts, as work for an engine."""

    harmful: tuple[str, ...]
    harmless: tuple[str, ...]
    refusal_ids: tuple[int, ...]
    depth: int  # layers at which induce restarts
    form: str = "paper"
    statistics: StreamStatistics | None = None

    def prepare(self, model: HookedChatModel) -> _State:
        """Lay out the prompts and run them without intervention; keep the harmless ones' residual streams."""
        kind = _Packed if packing_holds(model) else _Padded
        sets = (self.harmful, self.harmless, self.harmful + self.harmless)
        harmful, harmless, both = (kind(model, model.tokenize(prompts)) for prompts in sets)
        return _State(harmful, harmless, both, (harmful.before(), harmless.before(self.depth)))

    def run(self, model: HookedChatModel, state: _State, item: _Item) -> Float[Tensor, "*score row"]:
        """Mean over prompts for each candidate of ``item``; two rows of means for "ablated"."""
        n, first = len(item.vectors), len(self.harmful)

        def ablate(rows: slice) -> list[Intervention]:
            return [Ablate(item.vectors[rows], per_candidate=True, form=self.form, statistics=self.statistics)]

        def add(rows: slice) -> list[Intervention]:
            return [Add(item.vectors[rows], layers=item.layer)]

        def divergence(logits: Tensor, indices: list[int]) -> Tensor:
            return kl_divergence(state.baseline[1][indices], logits)

        def bypass_or_divergence(logits: Tensor, indices: list[int]) -> Tensor:
            found = torch.empty(len(indices), dtype=torch.float64, device=logits.device)
            harmful = torch.tensor([i < first for i in indices], device=logits.device)
            found[harmful] = self._metric(logits[harmful], []).to(found)
            found[~harmful] = divergence(logits[~harmful], [i - first for i in indices if i >= first]).to(found)
            return found

        if item.score == "baseline":
            return torch.stack([self._metric(logits, []).mean().cpu().double() for logits in state.baseline])
        if item.score == "induce":
            return state.harmless.run(n, add, self._metric, item.layer).mean(-1)
        if item.score == "bypass":
            return state.harmful.run(n, ablate, self._metric).mean(-1)
        if item.score == "kl":
            return state.harmless.run(n, ablate, divergence).mean(-1)
        found = state.both.run(n, ablate, bypass_or_divergence)
        return torch.stack([found[:, :first].mean(-1), found[:, first:].mean(-1)])

    def _metric(self, logits: Tensor, indices: list[int]) -> Tensor:
        return refusal_log_odds(logits, self.refusal_ids)


Step = Callable[[int], None]


class _Scorer:
    """Scores of candidates through an engine, cut into items of fixed size."""

    def __init__(self, engine: Engine, work: _Scores):
        self.engine, self.work = engine, work
        (baseline,) = self._map([_Item("baseline", torch.empty(0, engine.model.d_model))])
        self.baseline_harmful, self.baseline_harmless = baseline.tolist()

    def _map(self, items: list[_Item], on_step: Step | None = None) -> list[Tensor]:
        done = None if on_step is None else (lambda index: on_step(len(items[index].vectors)))
        found: list[Any] = self.engine.map(items[0].score, self.work, items, done) if items else []
        return found

    def induce(self, directions: Sequence[Direction], coeff: float, on_step: Step | None = None) -> list[float]:
        """Mean refusal metric on harmless prompts with coeff * r added; restarted at the candidate's layer."""
        groups: list[list[int]] = []
        for layer in sorted({d.layer for d in directions}):
            rows = [k for k, d in enumerate(directions) if d.layer == layer]
            groups += [rows[i : i + GROUP] for i in range(0, len(rows), GROUP)]
        items = [
            _Item("induce", torch.stack([coeff * directions[k].vector for k in rows]), directions[rows[0]].layer)
            for rows in groups
        ]
        found = torch.empty(len(directions), dtype=torch.float64)
        for rows, values in zip(groups, self._map(items, on_step), strict=True):
            found[rows] = values
        return found.tolist()

    def bypass(self, directions: Sequence[Direction], on_step: Step | None = None) -> list[float]:
        """Mean refusal metric on harmful prompts under ablation."""
        return self._ablated("bypass", directions, GROUP, on_step).tolist()

    def kl(self, directions: Sequence[Direction], on_step: Step | None = None, size: int = 1) -> list[float]:
        """Mean KL(baseline || ablated) on harmless prompts, ``size`` candidates per item."""
        return self._ablated("kl", directions, size, on_step).tolist()

    def placebo_kl(self, direction: Direction) -> tuple[float, ...]:
        """KL of ``PLACEBOS`` random directions: they depend on no candidate, so they stand beside each."""
        return tuple(self.kl([direction.random_control(seed) for seed in range(1, PLACEBOS + 1)], size=PLACEBOS))

    def bypass_and_kl(self, directions: Sequence[Direction], on_step: Step) -> tuple[list[float], list[float]]:
        """Both for every candidate: under one intervention they share the template's prefix."""
        found = self._ablated("ablated", directions, GROUP, lambda n: on_step(2 * n))
        bypass, kl = found.reshape(2, len(directions)).tolist()
        return bypass, kl

    def _ablated(
        self, score: str, directions: Sequence[Direction], size: int, on_step: Step | None
    ) -> Float[Tensor, "*score row"]:
        units = [direction.unit for direction in directions]
        items = [_Item(score, torch.stack(units[i : i + size])) for i in range(0, len(units), size)]
        found = self._map(items, on_step)
        return torch.cat(found, -1) if found else torch.empty(0)
