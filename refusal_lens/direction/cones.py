"""Learned directions and cones: refusal direction optimization (Wollschläger et al. 2025, arXiv 2502.17420).

Only unit vectors are trained; the weights stay as they are. Targets are the model's own words: the openings of its
answers to harmless requests, and of its refusals of harmful ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.prompts import PromptPair, check_pair
from ..engines.base import Engine
from ..engines.local import LocalEngine
from ..errors import DirectionError
from ..models.model import HookedChatModel
from ..progress import Advance, Progress, silent
from ..records.direction import Direction, DirectionLike, as_direction
from ..records.store import Store, content_key
from ..tensors import orthonormal
from .cone_loss import Batch, ConeLoss, OwnWords, own_words
from .cone_records import PARTS, LearnedCones, diverged_at
from .subspace import inside_cone

WEIGHTS = {"ablation": 1.0, "addition": 0.2, "retain": 1.0, "independence": 200.0}  # the first three: the authors'


def learn_cone(
    model: HookedChatModel,
    data: PromptPair,
    found: DirectionLike,
    *,
    dimension: int = 1,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 150,
    lr: float = 0.01,
    weights: Mapping[str, float] | None = None,
    batch_size: int = 8,
    samples: int = 4,
    independent_of: DirectionLike | None = None,
    every: int = 10,
    patience: int = 5,
    folder: str | Path | None = None,
    progress: Progress = silent,
    engine: Engine | None = None,
) -> LearnedCones:
    """Learn a refusal direction, or a cone of several dimensions, by gradient from random starts.

    The loss has the openings of the model's own answers under ablation on harmful prompts, the openings of its own
    refusals under addition on harmless ones, and KL to the model itself under ablation on harmless ones. A cone's loss
    is the mean over its basis and over directions sampled inside. Memory: a few prompts forward and backward, one
    direction at a time.

    Args:
        data: trained on the training prompts that the model refuses (harmful) or answers (harmless) in its replies,
            stopped early on validation prompts of that kind; test prompts are not read.
        found: the difference in means, whose layer and length addition uses; training does not start from it.
        dimension: of the cone; 1 for a direction.
        steps: most steps per seed; a step is one batch of each kind.
        lr: of Adam; after each step the basis is made orthonormal again.
        weights: "ablation", "addition", "retain", "independence" -> weight, in place of ``WEIGHTS`` of this module.
        batch_size: prompts of each kind per step.
        samples: directions sampled inside the cone per step, beside its basis.
        independent_of: penalize how the stream's cosine with this direction changes when a learned one is ablated, and
            the other way round (representational independence).
        every: steps between two validations.
        patience: validations without improvement after which a seed ends.
        folder: keeps the state of each seed at each validation, so that a later call goes on from there.
        engine: spreads the seeds over its workers; this process if None.

    Raises:
        ModelError: the model refuses no harmful, or answers no harmless, training or validation prompt.
        DirectionError: a dimension, weights or lr that make no sense, or all seeds diverged at the start.

    Example:
        >>> learned = rl.direction.learn_cone(model, data, found, seeds=[0], steps=2, every=1, batch_size=2)
        >>> learned.learned(0).unit.shape, learned.sizes["step"]
        (torch.Size([96]), 2)
    """
    check_pair(data)
    direction = as_direction(found)
    model.check_direction(direction)
    used = {**WEIGHTS, **(weights or {})}
    _check(model, dimension, used, lr, seeds, steps, every)
    other = None if independent_of is None else as_direction(independent_of)
    if other is not None:
        model.check_direction(other)
    losses = tuple(used[part] for part in PARTS)
    numbers = dimension, steps, lr, batch_size, samples, every, patience
    about = [model.fingerprint, str(model.dtype), model.chat.render("{}"), data.harmful, data.harmless]
    key = content_key("learned cone", 2, *about, direction, None if other is None else other.unit, losses, numbers)
    store = Store(None if folder is None else Path(folder).resolve())  # workers have folders of their own
    engine = engine or LocalEngine(model)
    with progress("learn", len(seeds) * steps) as advance:
        work = _Seeds(data, direction, other, losses, *numbers, store, key, advance)
        names = [(*work.name(seed), content_key(key, seed, "done")) for seed in (*seeds, None)]
        # Other processes do not tell their steps.
        told = None if isinstance(engine, LocalEngine) else (lambda index: advance(steps if index < len(seeds) else 0))
        *ends, reached = engine.map("seeds", work, [*seeds, None], told, store, names)
    return work.record(tuple(seeds), [_State.of(end) for end in ends], reached)


def _check(
    model: HookedChatModel,
    dimension: int,
    weights: Mapping[str, float],
    lr: float,
    seeds: Sequence[int],
    steps: int,
    every: int,
) -> None:
    if not 1 <= dimension <= model.d_model:
        raise DirectionError(f"a cone has 1 to {model.d_model} dimensions in this model, not {dimension}")
    if unknown := [name for name in weights if name not in PARTS]:
        raise DirectionError(f"the loss has no part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    if not lr > 0 or not seeds or not 1 <= every <= steps:
        raise DirectionError("learning takes lr above 0, at least one seed, and every from 1 to steps")


@contextmanager
def _frozen(model: HookedChatModel) -> Iterator[None]:
    """No weight takes part in the gradient, so that none of its activations is kept."""
    held = [p for p in model.backend.module.parameters() if p.requires_grad]
    try:
        for parameter in held:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)


@dataclass(frozen=True)
class _Seeds:
    """The training from one random start, as work for an engine."""

    data: PromptPair
    direction: Direction
    other: Direction | None
    weights: tuple[float, ...]
    dimension: int
    steps: int
    lr: float
    batch_size: int
    samples: int
    every: int
    patience: int
    store: Store
    key: str
    step: Advance

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "step": _untold}

    def name(self, seed: int | None) -> tuple[str, str]:
        """Name and key of a seed's state; None: what the difference in means reaches."""
        return f"seed-{self.dimension}-{'none' if seed is None else seed}", content_key(self.key, seed)

    def prepare(self, model: HookedChatModel) -> _Training:
        """The model's own words, as targets."""
        train, val = (own_words(model, self.data, split) for split in ("train", "val"))
        loss = ConeLoss(model, self.direction, self.other, self.weights, train.openings, train.refusals)
        return _Training(loss, train, val, self)

    def run(self, model: HookedChatModel, training: _Training, seed: int | None) -> dict[str, Tensor]:
        """A seed's last state; or the loss that the difference in means reaches, and the numbers of prompts."""
        with _frozen(model):
            if seed is None:
                return training.reached()
            return training.learned(seed).tensors()

    def record(self, seeds: tuple[int, ...], states: list[_State], reached: Mapping[str, Tensor]) -> LearnedCones:
        """What was learned with each seed, and what the difference in means reaches."""
        if all(state.diverged >= 0 and not state.best_step for state in states):
            raise DirectionError(diverged_at(states[0].diverged, self.lr, 0))
        return LearnedCones(
            self.direction,
            seeds,
            torch.stack([state.best for state in states]),
            torch.stack([_filled(state.losses, self.steps) for state in states]),
            torch.stack([_filled(state.checks, self.steps // self.every + 1) for state in states]),
            self.every,
            tuple(state.best_step for state in states),
            tuple(state.diverged for state in states),
            float(reached["loss"]),
            self.weights,
            self.lr,
            tuple(reached["prompts"].tolist()),
        )


def _untold(n: int) -> None:
    """Steps on another process."""


@dataclass
class _State:
    """One seed's training: all that going on from here needs."""

    basis: Tensor
    best: Tensor
    mean: Tensor  # of Adam: of the gradient
    square: Tensor  # of Adam: of its square
    losses: Tensor
    checks: Tensor
    best_step: int = 0
    diverged: int = -1

    @classmethod
    def start(cls, seed: int, dimension: int, d_model: int) -> _State:
        draw = torch.Generator().manual_seed(seed)
        basis = orthonormal(torch.randn(dimension, d_model, generator=draw, dtype=torch.float64))
        mean, square, none = torch.zeros_like(basis), torch.zeros_like(basis), torch.zeros(0, dtype=torch.float64)
        return cls(basis, basis, mean, square, none.reshape(0, len(PARTS)), none)

    def tensors(self) -> dict[str, Tensor]:
        ends = torch.tensor([self.best_step, self.diverged])
        # Copies: a file can't hold one tensor under two names, and the best basis may be the last.
        return {**{k: v.clone() for k, v in vars(self).items() if isinstance(v, Tensor)}, "ends": ends}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> _State:
        best_step, diverged = tensors["ends"].tolist()
        return cls(**{k: v for k, v in tensors.items() if k != "ends"}, best_step=best_step, diverged=diverged)


@dataclass(frozen=True)
class _Training:
    loss: ConeLoss
    train: OwnWords
    val: OwnWords
    how: _Seeds

    def reached(self) -> dict[str, Tensor]:
        """The validation loss of the difference in means, and the numbers of training prompts."""
        loss = self._validated(self.loss.direction.unit.double()[None], torch.ones(1, 1, dtype=torch.float64))
        return {"loss": loss, "prompts": torch.tensor([len(self.train.harmful), len(self.train.harmless)])}

    def learned(self, seed: int) -> _State:
        """Train one seed, from the state that the store has."""
        (name, key), store, advance = self.how.name(seed), self.how.store, self.how.step
        kept = store.get(name, key)
        state = _State.of(kept) if kept else _State.start(seed, self.how.dimension, self.loss.model.d_model)
        if not len(state.checks):
            self._turn(state)
            state.best, state.checks = state.basis, self._validated(state.basis)[None]
        begun = len(state.losses)
        advance(begun)
        while begun < self.how.steps and state.diverged < 0 and not self._is_over(state):
            if not self._step(state, seed, begun):
                state.diverged = begun
            elif (begun := begun + 1) % self.how.every == 0:
                self._check(state, begun)
            advance(1)
            if state.diverged >= 0 or begun % self.how.every == 0:
                store.put(name, state.tensors(), key)
        advance(self.how.steps - len(state.losses))
        return state

    def _is_over(self, state: _State) -> bool:
        return (len(state.checks) - 1) - state.best_step // self.how.every >= self.how.patience

    def _check(self, state: _State, step: int) -> None:
        self._turn(state)
        loss = self._validated(state.basis)
        if bool(loss < state.checks.min()):
            state.best, state.best_step = state.basis, step
        state.checks = torch.cat([state.checks, loss[None]])
        if not bool(loss.isfinite()):
            state.diverged = step

    @torch.no_grad()
    def _turn(self, state: _State) -> None:
        """Take the side of each vector whose addition refuses: ablation can't tell v from -v, and a start on the wrong
        side stays there."""
        batches, signs = list(self._batches()), []
        for v in state.basis:
            here, there = (
                sum(n * float(self.loss.addition(side * v, batch)) for n, batch in batches) for side in (1, -1)
            )
            signs.append([-1.0 if there < here else 1.0])
        side = torch.tensor(signs, dtype=torch.float64)
        state.basis, state.mean = side * state.basis, side * state.mean

    def _step(self, state: _State, seed: int, step: int) -> bool:
        """One step of Adam, then back to orthonormal rows; False where a number is not finite."""
        draw = torch.Generator().manual_seed(
            (seed << 32) + step
        )  # of the step alone, so that a resumed run is the same
        rows = [
            torch.randperm(len(texts), generator=draw)[: self.how.batch_size].tolist()
            for texts in (self.train.harmful, self.train.harmless)
        ]
        batch = self.loss.batch(self.train, rows[0], rows[1], draw)
        basis = state.basis.clone().requires_grad_()
        gradient, losses = torch.zeros_like(basis), torch.zeros(len(PARTS), dtype=torch.float64)
        mixes = self._mixes(draw)
        for mix in mixes:
            with torch.enable_grad():
                parts = self.loss.parts(mix @ basis, batch)
                (slope,) = torch.autograd.grad(self.loss.total(parts), basis)
            gradient, losses = gradient + slope / len(mixes), losses + parts.detach() / len(mixes)
        if not bool(gradient.isfinite().all() and losses.isfinite().all()):
            return False
        moved = state.basis.clone()
        moved.grad, adam = gradient, torch.optim.Adam([moved], self.how.lr)
        adam.state[moved] = {"step": torch.tensor(float(step)), "exp_avg": state.mean, "exp_avg_sq": state.square}
        adam.step()  # in place, the moments too
        if not bool(moved.square().sum().isfinite()):  # QR gives NaN where squares overflow
            return False
        state.basis, state.losses = orthonormal(moved), torch.cat([state.losses, losses[None]])
        return True

    def _mixes(self, draw: torch.Generator) -> Float[Tensor, "mix vector"]:
        """Nonnegative combinations: the basis itself, and directions uniform over the cone's part of the sphere."""
        basis = torch.eye(self.how.dimension, dtype=torch.float64)
        if self.how.dimension == 1:
            return basis
        return torch.cat([basis, inside_cone(self.how.dimension, self.how.samples, draw)])

    @torch.no_grad()
    def _validated(self, basis: Tensor, mixes: Tensor | None = None) -> Tensor:
        """Weighted loss on the validation prompts, with targets and sampled directions that are always the same."""
        mixes = self._mixes(torch.Generator().manual_seed(0)) if mixes is None else mixes
        total, count = torch.zeros((), dtype=torch.float64), 0
        for n, batch in self._batches():
            for mix in mixes:
                total = total + n * self.loss.total(self.loss.parts(mix @ basis, batch))
            count += n * len(mixes)
        return total / count

    def _batches(self) -> Iterator[tuple[int, Batch]]:
        """The validation prompts, as many of each kind."""
        draw, n = torch.Generator().manual_seed(0), min(len(self.val.harmful), len(self.val.harmless))
        for first in range(0, n, self.how.batch_size):
            rows = range(first, min(first + self.how.batch_size, n))
            yield len(rows), self.loss.batch(self.val, rows, rows, draw)


def _filled(x: Tensor, n: int) -> Tensor:
    """``x`` with rows of NaN up to ``n``."""
    return torch.cat([x, x.new_full((n - len(x), *x.shape[1:]), float("nan"))])
