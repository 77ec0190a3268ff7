"""One layer's row of attention in two runs and in mixtures of them: what a query, or keys, change in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import factorial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import ModelError
from ..hooks.base import Model
from ..hooks.scores import TOLERANCE, Scored, ScoreForm, ScoreRows, products
from ..models.chat import Tokens
from .shift_records import TARGETS

MASKED = -1e4  # scores below are masked: float16 has no lower ones than -65504
NODES, WEIGHTS = np.polynomial.legendre.leggauss(32)  # of the path between two rows


class Pair(NamedTuple):
    """The suffixed and the random run of some prompts."""

    tokens: Tokens
    before: ScoreRows
    after: ScoreRows
    targets: Bool[Tensor, "target batch src"]
    post: Bool[Tensor, "batch src"]
    n_last: int

    @property
    def suffix(self) -> Bool[Tensor, "batch src"]:
        """The suffix's tokens."""
        return self.targets[TARGETS.index("suffix")]


class Path(NamedTuple):
    """The straight path between two rows of scores, for some heads of a layer.

    Attributes:
        worth: what a change of each score before the cap is worth to the attention on each target.
        by_key: the whole change by key.
        change: its sum.
        gained: change of each weight.
    """

    worth: Float[Tensor, "target batch r src"]
    by_key: Float[Tensor, "target r src batch"]
    change: Float[Tensor, "target r batch"]
    gained: Float[Tensor, "r src batch"]


@dataclass
class Row:
    """One layer's row of scores in both runs, and in mixtures of them."""

    form: ScoreForm
    both: Pair
    q: tuple[Float[Tensor, "batch head d"], Float[Tensor, "batch head d"]]
    k: tuple[Float[Tensor, "batch src kv d"], Float[Tensor, "batch src kv d"]]
    scores: list[list[Float[Tensor, "batch head src"]]]  # [run of the query][run of the keys], before the cap
    bias: Float[Tensor, "batch head src"]
    seen: Bool[Tensor, "batch head src"]
    error: float = 0.0
    causality: float = 0.0

    @classmethod
    def of(cls, model: Model, layer: int, form: ScoreForm, both: Pair, pos: int) -> Row:
        """Compute the scores again, and compare them, the weights, and the keys before the suffix with the model's own.

        Raises:
            ModelError: scores or weights that are made in another way.
        """
        device = both.post.device
        rows = [run.layers[layer] for run in (both.before, both.after)]
        pairs = [row.effective(form, pos) for row in rows]
        q, k = ([pair[i].to(device) for pair in pairs] for i in range(2))
        scores = [[products(form, q[a], k[b]) for b in range(2)] for a in range(2)]
        measured = [row.scores.to(device) for row in rows]
        upto = both.post.shape[1] + pos
        keys = both.tokens.mask & (torch.arange(both.post.shape[1], device=device) <= upto)
        seen = keys[:, None] & (measured[0] > MASKED) & (measured[1] > MASKED)
        gaps = [(m - form.capped(scores[i][i])).masked_fill(~seen, 0) for i, m in enumerate(measured)]
        size = form.scale * max(float(x.norm(dim=-1).max()) for x in q) * max(float(x.norm(dim=-1).max()) for x in k)
        bias, limit = (gaps[0] + gaps[1]) / 2, TOLERANCE.get(model.dtype, 4e-2)
        if float(bias.abs().max()) <= limit * size:
            bias = torch.zeros_like(bias)
        made = cls(form, both, (q[0], q[1]), (k[0], k[1]), scores, bias, seen)
        own = [made.weights(made.mixed(i, i, i)) - row.pattern.to(device) for i, row in enumerate(rows)]
        misses = [float(x.masked_fill(~keys[:, None], 0).abs().max()) for x in own]
        made.error = max(float((gaps[1] - gaps[0]).abs().max()) / size, *misses)
        if not made.error <= limit:
            raise ModelError(
                f"{model.name}, layer {layer}: scores or weights computed from its queries and keys differ from its own"
                f" by {made.error:.2g} (limit {limit:g}): it scores in a way not known here, so the change can't be "
                "split"
            )
        before = keys & ~both.post & ~both.suffix
        for x, y in ((rows[0].k, rows[1].k), (rows[0].v, rows[1].v)):
            change = (x - y).to(device)[before].abs().max() / y.abs().max().clamp_min(1e-30)
            made.causality = max(made.causality, float(change))
        return made

    def mixed(self, query: int, suffix: int, template: int) -> Float[Tensor, "batch head src"]:
        """Scores before the cap with each part from the random (0) or the suffixed run (1)."""
        by_keys = self.scores[query]
        found = torch.where(self.both.suffix[:, None], by_keys[suffix], by_keys[0])
        return torch.where(self.both.post[:, None], by_keys[template], found)

    def weights(self, scores: Float[Tensor, "batch head src"]) -> Float[Tensor, "batch head src"]:
        """The softmax, with sinks."""
        return softmax(self.form, self.form.capped(scores) + self.bias, self.seen)

    def masses(self, query: int, suffix: int, template: int) -> Float[Tensor, "target head batch"]:
        """Attention on each target, with scores mixed so."""
        scores = self.mixed(query, suffix, template)
        return torch.einsum("bhs,tbs->thb", self.weights(scores), self.both.targets.to(scores))

    def path(self, heads: list[int]) -> Path:
        """Integrate the derivative of the attention on each target from one row to the other."""
        form, seen = self.form, self.seen[:, heads]
        raw = [self.mixed(i, i, i)[:, heads] for i in range(2)]
        ends = [form.capped(x) + self.bias[:, heads] for x in raw]
        step = (ends[1] - ends[0]).masked_fill(~seen, 0)
        mask = self.both.targets.to(step)[:, :, None]
        worth = step.new_zeros(len(TARGETS), *step.shape)
        for node, weight in zip(NODES.tolist(), WEIGHTS.tolist(), strict=True):
            p = softmax(form, ends[0] + (1 + node) / 2 * step, seen, heads)
            worth += weight / 2 * p * (mask - (p * mask).sum(-1, keepdim=True))
        by_key = (worth * step).permute(0, 2, 3, 1)
        if form.cap:  # the cap's mean slope between both scores
            slope = 1 - torch.tanh((raw[0] + raw[1]) / 2 / form.cap) ** 2
            gap = raw[1] - raw[0]
            worth = worth * torch.where(gap.abs() > 1e-6, step / gap, slope)
        weights = [softmax(form, x, seen, heads) for x in ends]
        return Path(worth, by_key, by_key.sum(2), (weights[1] - weights[0]).permute(1, 2, 0))

    def pulls(self, path: Path, heads: list[int]) -> tuple[Tensor, Tensor]:
        """What a change of the query, and of each key at the last positions, is worth (see ``Writers.split``)."""
        group = self.q[0].shape[1] // self.k[0].shape[2]
        k = ((self.k[0] + self.k[1]) / 2)[:, :, [head // group for head in heads]]
        q = ((self.q[0] + self.q[1]) / 2)[:, heads]
        to_query = self.form.scale * torch.einsum("tbrs,bsrd->tbrd", path.worth, k)
        after = (self.both.post | self.both.suffix).to(q)
        worth = (path.worth * after[:, None])[..., -self.both.n_last :]
        return to_query, self.form.scale * worth[..., None] * q[:, :, None]

    @property
    def hides_instruction(self) -> bool:
        """Whether a window hides it from the position."""
        return not bool((self.seen & self.both.targets[TARGETS.index("instruction")][:, None]).any())


@dataclass
class PlainRow:
    """A row of the suffixed run in which the query, its distance to the instruction, and keys may be the plain run's.

    What follows the instruction lies as far from the query in both runs, so distance is a matter of the tokens before
    the suffix only.
    """

    row: Row
    far: list[list[Float[Tensor, "batch head src"]]]  # before the suffix: [run of the query][run of the distance]
    near: list[list[Float[Tensor, "batch head src"]]]  # after it: [run of the query][run of the template's keys]
    bias: list[Float[Tensor, "batch head src"]]
    seen: list[Bool[Tensor, "batch head src"]]
    error: float

    @classmethod
    def of(
        cls, row: Row, layer: int, alone: Scored, columns: Int[Tensor, "batch src"], n_post: int, pos: int
    ) -> PlainRow:
        """Align the plain run with the suffixed one: before the suffix from the start, after it from the end."""
        after, form, device = row.both.after.layers[layer], row.form, row.both.post.device
        runs = (alone, after)
        queries = [[query.turned(form, place, pos).to(device) for place in runs] for query in runs]
        turns = [None if t is None else t[:, -n_post:] for t in (after.cos, after.sin)]
        normed = None if alone.k_normed is None else alone.k_normed[:, -n_post:]
        own = row.k[1].clone()
        own[:, -n_post:] = form.effective(alone.k[:, -n_post:], normed, *turns).to(device)
        far = [[products(form, q, row.k[1]) for q in some] for some in queries]
        near = [[products(form, some[1], k) for k in (own, row.k[1])] for some in queries]
        measured = alone.scores.to(device)
        gap = measured - form.capped(products(form, *(x.to(device) for x in alone.effective(form, pos))))
        index = columns.clamp_min(0)[:, None].expand(-1, measured.shape[1], -1)
        bias = [torch.zeros_like(row.bias), row.bias - row.bias[..., pos : pos + 1 or None]]
        if bool(row.bias.any()):
            bias[0] = (gap - gap[..., pos : pos + 1 or None]).gather(-1, index)
        visible = (measured > MASKED) & (alone.pattern.to(device) > 0)
        seen = visible.gather(-1, index) & (columns >= 0)[:, None]
        made = cls(row, far, near, bias, [seen, row.seen], 0.0)
        inside = row.both.targets[TARGETS.index("instruction")][:, None]
        found = (made.masses(0, 0, 0, 0)[0].T - (alone.pattern.to(device).gather(-1, index) * inside).sum(-1)).abs()
        made.error = float(found.max())
        return made

    def masses(self, query: int, distance: int, suffix: int, template: int) -> Float[Tensor, "target head batch"]:
        """Attention on each target with each part from the plain (0) or the suffixed run (1)."""
        both, form = self.row.both, self.row.form
        after = (both.suffix | both.post)[:, None]
        scores = torch.where(after, self.near[query][template], self.far[query][distance])
        scores = form.capped(scores) + torch.where(after, self.bias[1], self.bias[distance])
        seen = torch.where(after, self.row.seen, self.seen[distance])
        seen = seen if suffix else seen & ~both.suffix[:, None]
        return torch.einsum("bhs,tbs->thb", softmax(form, scores, seen), both.targets.to(scores))


def shapley(values: Sequence[Tensor], n: int) -> Float[Tensor, "player *rest"]:
    """Each of ``n`` players' mean marginal effect over all orders (Shapley 1953).

    Args:
        values: of every coalition, in the order of ``itertools.product((0, 1), repeat=n)``.
    """
    found = []
    for player in range(n):
        bit, total = 1 << (n - 1 - player), torch.zeros_like(values[0])
        for coalition in range(1 << n):
            if not coalition & bit:
                size = coalition.bit_count()
                weight = factorial(size) * factorial(n - size - 1) / factorial(n)
                total = total + weight * (values[coalition | bit] - values[coalition])
        found.append(total)
    return torch.stack(found)


def softmax(form: ScoreForm, scores: Tensor, seen: Tensor, heads: Sequence[int] | None = None) -> Tensor:
    """Softmax over the keys that are seen, and the sinks."""
    hidden = scores.masked_fill(~seen, float("-inf"))
    if form.sinks is None:
        return hidden.softmax(-1).nan_to_num(0.0)
    sinks = form.sinks if heads is None else form.sinks[list(heads)]
    column = sinks.to(scores)[None, :, None].expand(len(scores), -1, 1)
    return torch.cat([hidden, column], -1).softmax(-1)[..., :-1]
