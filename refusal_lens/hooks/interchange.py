"""Interchange interventions: activations of one run set, at the last positions of the prompts, to another run's.

The names are those of TransformerLens's ``tools.analysis.interchange``: the base's coordinates inside a subspace are
set to the source's. Prompts with and without a suffix correspond at their post-instruction positions, so positions are
counted from the prompt's end; tokens generated after it are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InterventionError
from ..tensors import random_unit, unit, wide
from .attention import HeadsIntervention
from .base import HookIntervention, Hooks, Model, Where, layers_of
from .interventions import Change, at_last, checked, named, subject_of, vectors_in
from .readout import Readout


def orthogonal_like(basis: Float[Tensor, "*k d_model"], seed: int) -> Float[Tensor, "*k d_model"]:
    """As many random orthonormal directions, all orthogonal to ``basis``."""
    if basis.ndim == 1:
        other = random_unit(len(basis), seed, torch.float64).to(basis)
        other = other - (other @ basis) * basis
        return other / other.norm()
    k, d = basis.shape
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(k, d, generator=generator, dtype=torch.float64)
    if 2 * k > d:
        raise InterventionError(f"{k} of {d} directions leave no room for as many that are orthogonal to them")
    return torch.linalg.qr(torch.cat([basis.double().cpu(), drawn]).T).Q[:, k:].T.to(basis)


@dataclass(frozen=True)
class Interchange(HookIntervention):
    """The residual stream's coordinates along a direction (or in a subspace) set to another run's, at every resid_pre.

    x <- x + strength * Vᵀ(values - V x), at the last positions of the prompts.

    Attributes:
        direction: a ``Direction``, a unit vector [d_model], a ``Subspace`` or orthonormal vectors [k, d_model].
        values: the other run's coordinates, by layer: one row per prompt (or one for all) and last position.
        layers: None for all but the first, whose input at these positions is the tokens' embedding in both runs.
        along: the moves are made along these directions instead (see ``placebo``).

    Raises:
        InterventionError: vectors that are not orthonormal, or too few rows (when it is applied).
    """

    direction: Any
    values: Float[Tensor, "layer row last *k"] | Mapping[int, Float[Tensor, "row last *k"]]
    along: Float[Tensor, "*k d_model"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "direction", named(self.direction))

    counts_positions = True  # it acts at the last positions of prompts

    @property
    def basis(self) -> Float[Tensor, "*k d_model"]:
        """The direction or the directions as vectors."""
        return vectors_in(self.direction)

    def hooks(self, model: Model) -> Hooks:
        """One hook per chosen layer, at its resid_pre."""
        basis = checked(self.direction, model)
        rows = basis[None] if basis.ndim == 1 else basis
        if not torch.allclose((rows @ rows.mT).double().cpu(), torch.eye(len(rows)).double(), atol=1e-3):
            raise InterventionError("the vectors of an interchange must be orthonormal; use tensors.orthonormal")
        where = Where(model, self)
        layers = layers_of(slice(1, None) if self.layers is None else self.layers, model.n_layers)
        return [
            (f"blocks.{n}.hook_resid_pre", at_last(where, self.values[n].shape[1], self._move(where, n)))
            for n in layers
        ]

    def _move(self, where: Where, layer: int) -> Change:
        def move(x: Tensor) -> Tensor:
            full = wide(x)
            v = self.basis.to(full)
            to = v if self.along is None else self.along.to(full)
            steps = where.rows(self.values[layer]).to(full) - full @ (v if v.ndim == 1 else v.T)
            moves = steps[..., None] * to if v.ndim == 1 else steps @ to
            return x + (self.strength * moves).to(x.dtype)

        return move

    def placebo(self, seed: int) -> Interchange:
        """Moves of the size that would reach the other run's coordinates, along random directions orthogonal to them.

        They do not bring the stream closer to its goal, so later layers move by the whole distance again:
        ``NormMatchedPlacebo`` repeats the moves that were made.
        """
        return replace(self, along=orthogonal_like(self.basis, seed))

    def _subject(self) -> str:
        return subject_of(self.direction)


@dataclass(frozen=True)
class InterchangeHeads(HeadsIntervention):
    """Outputs z of some heads set to other values at the last positions of the prompts.

    Attributes:
        heads: (layer, head) pairs.
        values: z of all heads by layer: one row per prompt, or one for all.
        random: seed of the random directions along which moves of equal norm are made instead (see ``placebo``).

    Example:
        >>> from refusal_lens.attribution.causal import last_z
        >>> calm = last_z(model, data.harmless.test, n_last=1).mean(1, keepdim=True)  # one row for all prompts
        >>> with model.hooks(rl.hooks.InterchangeHeads(((2, 0), (2, 1)), calm)):
        ...     logits = model.last_logits(data.harmful.test)
    """

    values: Float[Tensor, "layer row last head d_head"] | Mapping[int, Float[Tensor, "row last head d_head"]]
    random: int | None = None

    def _layer(self, model: Model, where: Where, layer: int, heads: list[int]) -> Hooks:
        edit = at_last(where, self.values[layer].shape[1], self._set(where, layer, heads))
        return [(f"blocks.{layer}.attn.hook_z", edit)]

    def _set(self, where: Where, layer: int, heads: list[int]) -> Change:
        values = self.values[layer][:, :, heads]

        def replace_z(z: Tensor) -> Tensor:
            new = z.reshape(*z.shape[:2], -1, values.shape[-1]).clone()
            wanted = where.rows(values).to(new)
            if self.random is not None or self.strength != 1:
                here = wide(new[:, :, heads])
                step = wide(wanted) - here
                if self.random is not None:
                    drawn = [random_unit(step.shape[-1], self.random + 1000 * layer + h) for h in heads]
                    step = step.norm(dim=-1, keepdim=True) * torch.stack(drawn).to(step)
                wanted = (here + self.strength * step).to(new)
            new[:, :, heads] = wanted
            return new.reshape(z.shape)

        return replace_z

    def placebo(self, seed: int) -> InterchangeHeads:
        """Each head's z moved as far, in a random direction."""
        return replace(self, random=seed)


@dataclass(frozen=True)
class InterchangeWrites(HeadsIntervention):
    """The component along r̂ of what some heads write, at the last positions, set to another run's.

    Attributes:
        heads: (layer, head) pairs.
        readout: r̂ as the heads see it.
        values: the other run's contributions along r̂, by layer: one row per prompt, or one for all.
        along: the moves are made along this direction instead (see ``placebo``).
    """

    readout: Readout
    values: Float[Tensor, "layer head row last"] | Mapping[int, Float[Tensor, "head row last"]]
    along: Float[Tensor, "d_model"] | None = None

    def _layer(self, model: Model, where: Where, layer: int, heads: list[int]) -> Hooks:
        """Read z (and a post-norm's scale), and move hook_attn_out along r̂ by the difference."""
        seen: dict[str, Tensor] = {}
        wanted = self.values[layer][heads].sum(0)
        n_last, r, site = wanted.shape[-1], self.readout.vector, self.readout.scale_sites[layer]

        def read(z: Tensor, hook: Any) -> None:
            z = wide(z[:, -n_last:]).to(r).reshape(len(z), -1, model.n_heads, model.d_head)[:, :, heads]
            seen["now"] = torch.einsum("bqhd,hd->bq", z, self.readout.heads[layer][heads])

        def scale(s: Tensor, hook: Any) -> None:
            seen["scale"] = wide(s[:, -n_last:, 0]).to(r)

        def move(x: Tensor) -> Tensor:
            now = seen.pop("now") / seen.pop("scale", torch.ones((), dtype=r.dtype, device=r.device))
            to = r if self.along is None else self.along.to(r)
            step = (where.rows(wanted).to(now) - now)[..., None] * to
            return x + (self.strength * step).to(x.dtype)

        base = f"blocks.{layer}"
        extra = [] if site is None else [(site, scale)]
        return [(f"{base}.attn.hook_z", read), *extra, (f"{base}.hook_attn_out", at_last(where, n_last, move))]

    def placebo(self, seed: int) -> InterchangeWrites:
        """Moves of the same sizes along a random direction orthogonal to r̂."""
        return replace(self, along=orthogonal_like(unit(self.readout.vector), seed))


@dataclass(frozen=True)
class InterchangePattern(HeadsIntervention):
    """Attention weights of some heads at the last positions of the prompts, taken from another run.

    Attributes:
        heads: (layer, head) pairs.
        patterns: by layer, the other run's rows at the last positions.
        columns: for each of this run's sources, the other run's; -1 for none (its weight is 0). Rows are
            renormalised, since the other run may have attended to tokens that this one lacks.
    """

    patterns: Mapping[int, Float[Tensor, "row head last other_src"]]
    columns: Int[Tensor, "row src"]

    def _layer(self, model: Model, where: Where, layer: int, heads: list[int]) -> Hooks:
        return [(f"blocks.{layer}.attn.hook_pattern", self._edit(where, self.patterns[layer], heads))]

    def _edit(self, where: Where, other: Tensor, heads: list[int]) -> Any:
        def rows() -> Tensor:
            columns, wanted = where.rows(self.columns), where.rows(other)[:, heads]
            index = columns.clamp_min(0)[:, None, None, :].expand(-1, len(heads), other.shape[2], -1)
            found = torch.gather(wanted, -1, index) * (columns >= 0)[:, None, None]
            whole = found.sum(-1, keepdim=True)
            return found / whole.clamp_min(torch.finfo(found.dtype).tiny)

        def replace_rows(p: Tensor, hook: Any) -> Tensor:
            if not where.in_prompt(p.shape[-2]):
                return p
            new, last = p.clone(), other.shape[2]
            mine = rows().to(new)
            if self.strength != 1:
                mine = torch.lerp(new[:, heads, -last:], mine, self.strength)
            if self.positions is not None:
                chosen = where.at(p.shape[-2])
                if chosen is None:
                    return p
                mine = torch.where(chosen[:, None, -last:, None], mine, new[:, heads, -last:])
            new[:, heads, -last:] = mine
            return new

        replace_rows.where = where  # type: ignore[attr-defined]
        return replace_rows

    def placebo(self, seed: int) -> InterchangePattern:
        """The same in as many random other heads of the same layers."""
        return self.elsewhere(seed)
