"""Interventions on the residual stream, as values: ``with model.hooks(Ablate(direction)): ...``"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import DirectionError, InterventionError
from ..records.direction import Direction, Subspace, as_direction
from ..records.stream import StreamStatistics
from ..tensors import orthonormal, random_unit, unit, wide
from .base import HookIntervention, Hooks, Model, Scoped, Where, check_size, layers_of, write_sites
from .forms import Form, LayerEdit, as_form, check_statistics, form_name

Change = Callable[[Tensor], Tensor]


def random_like(vectors: Float[Tensor, "*rows d_model"], seed: int) -> Float[Tensor, "*rows d_model"]:
    """Random vectors of the same lengths; those of a stack are orthogonal to each other where they can be."""
    if vectors.ndim == 1:
        return vectors.norm() * random_unit(len(vectors), seed, vectors.dtype).to(vectors)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(vectors.shape, generator=generator, dtype=torch.float64)
    drawn = orthonormal(drawn) if len(drawn) <= drawn.shape[-1] else unit(drawn)
    return vectors.norm(dim=-1, keepdim=True) * drawn.to(vectors)


def _placebo_of(what: Direction | Subspace | Tensor, seed: int) -> Any:
    if isinstance(what, Direction):
        return what.random_control(seed)
    if isinstance(what, Subspace):
        return Subspace.random(what.reference, len(what), seed)
    return random_like(what, seed)


def subject_of(what: Direction | Subspace | Tensor) -> str:
    if isinstance(what, Direction):
        return what.label
    if isinstance(what, Subspace):
        return f"{len(what)} directions ({what.kind})"
    return "a vector" if what.ndim == 1 else f"{len(what)} vectors"


def named(what: Any) -> Direction | Subspace | Tensor:
    """What is meant: a direction, a subspace, vectors, or the direction of a result that has one."""
    return what if isinstance(what, (Subspace, Tensor)) else as_direction(what)


def vectors_in(what: Direction | Subspace | Tensor) -> Float[Tensor, "*k d_model"]:
    """Unit vector of a direction, or the vectors of a subspace; vectors as they are."""
    return what.unit if isinstance(what, Direction) else what.vectors if isinstance(what, Subspace) else what


def checked(what: Direction | Subspace | Tensor, model: Model) -> Float[Tensor, "*k d_model"]:
    """The same, refused where they belong to another model or have another width."""
    if isinstance(what, Tensor):
        check_size(what, model)
    else:
        model.check_direction(what.reference if isinstance(what, Subspace) else what)
    return vectors_in(what)


def by_candidate(x: Float[Tensor, "batch pos d_model"], n: int) -> Float[Tensor, "n tokens d_model"]:
    """A batch that holds as many rows for each of ``n`` candidates, one candidate after another."""
    if len(x) % n:
        raise InterventionError(f"a batch of {len(x)} rows has no equal parts for {n} candidates")
    return x.reshape(n, -1, x.shape[-1])


@dataclass(frozen=True)
class Ablate(HookIntervention):
    """Directional ablation: x <- x - r̂ r̂ᵀx at every write to the residual stream (paper section 2.4).

    Of a subspace with orthonormal rows V: x <- x - Vᵀ V x. A ``strength`` s removes the share s of the projection.
    Other forms centre the stream or weigh its coordinates first: x <- x - r wᵀ(x - μ) / wᵀr at every block's input.

    Attributes:
        direction: a ``Direction`` (or a result that has one), a vector [d_model], a ``Subspace`` or vectors
            [k, d_model] that span one.
        per_candidate: the batch holds equally many rows per vector, one vector after another; each is ablated in its
            own part only.
        form: a ``Form``, or the name of one: "paper", "stream", "affine", "scaled", "oblique".
        statistics: of the stream, for the last three (``candidates.statistics``).

    Raises:
        DirectionError: a direction, or statistics, of another model, basis or size (when it is applied).
        InterventionError: a form without its statistics, or one that a constant coordinate makes impossible.

    Example:
        >>> with model.hooks(rl.Ablate(found, layers=slice(2, None), positions=("template_post", "reply"))):
        ...     reply = model.generate("How do I pick a lock?", 4)
        >>> with model.hooks(rl.Ablate(found, form="scaled", statistics=found.candidates.statistics)):
        ...     reply = model.generate("How do I pick a lock?", 4)
    """

    direction: Any
    per_candidate: bool = False
    form: Form | str = field(default="paper", kw_only=True)
    statistics: StreamStatistics | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "direction", named(self.direction))
        object.__setattr__(self, "form", as_form(self.form))

    @property
    def by_row(self) -> bool:
        """Not where rows of the batch belong to different vectors."""
        return not self.per_candidate

    def hooks(self, model: Model) -> Hooks:
        """One hook per write site of the chosen layers, or per block's input."""
        where, form, vectors = Where(model, self), as_form(self.form), self.vectors(model)
        check_statistics(form, self.statistics, model)
        if form.site == "writes":
            edit = Scoped(self._change(vectors, 0, where), where)
            return [(name, edit) for name in write_sites(model.n_layers, self.layers)]
        return [
            (f"blocks.{layer}.hook_resid_pre", Scoped(self._change(vectors, layer, where), where))
            for layer in layers_of(self.layers, model.n_layers)
        ]

    def vectors(self, model: Model) -> Tensor:
        """The direction's unit vector, or the subspace's vectors, checked against the model."""
        return checked(self.direction, model)

    def rows(self, vectors: Tensor) -> Float[Tensor, "k d_model"]:
        """Unit vectors along which tokens move, at right angles unless each is ablated apart; float64."""
        rows = vectors.double().cpu().reshape(-1, vectors.shape[-1])
        return unit(rows) if self.per_candidate or len(rows) == 1 else orthonormal(rows)

    def _change(self, vectors: Tensor, layer: int, where: Where) -> Change:
        """The form at one layer, prepared in float64: float32 storage leaves 1e-8 of the component there."""
        rows, form, device = self.rows(vectors), as_form(self.form), where.model.device
        edit = LayerEdit.of(rows, form, self.statistics, layer, self.per_candidate, device, where.spared)

        def change(x: Tensor) -> Tensor:
            full = wide(x)
            if not self.per_candidate:
                return edit(full, self.strength).to(x.dtype)
            return edit.apart(by_candidate(full, len(rows)), self.strength).to(x.dtype).reshape(x.shape)

        return change

    def placebo(self, seed: int) -> Ablate:
        """Ablation of a random direction (or of a random subspace of equal size, or of random directions)."""
        return replace(self, direction=_placebo_of(self.direction, seed))

    def _subject(self) -> str:
        form = form_name(as_form(self.form))
        return subject_of(self.direction) + ("" if form == "paper" else f", {form}")


@dataclass(frozen=True)
class Add(HookIntervention):
    """Activation addition: x <- x + coeff * r at resid_pre of one layer (paper section 2.4).

    Attributes:
        direction: a ``Direction`` (or a result that has one): its ``norm`` is used, so coeff 1 adds r itself and -1
            subtracts it. Or a vector [d_model], added unchanged; of vectors [candidate, d_model] the batch holds as
            many rows each, one candidate after another.
        coeff: multiple of r; if None the direction's own ``coeff``, for vectors 1.
        layers: at which layers' resid_pre; None for the direction's own layer.

    Raises:
        DirectionError: a direction of another model, basis or size, or a subspace.

    Example:
        >>> rl.Add(found.direction.vector, layers=1, positions="prompt").label
        'Add a vector, layers 1, positions prompt'
    """

    direction: Any
    coeff: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "direction", named(self.direction))
        if isinstance(self.direction, Subspace):
            raise DirectionError("a subspace has no vector to add; add a direction, or one of the subspace's vectors")

    @property
    def by_row(self) -> bool:
        """Not where rows of the batch belong to different vectors."""
        return not isinstance(self.direction, Tensor) or self.direction.ndim == 1

    def hooks(self, model: Model) -> Hooks:
        """One hook per chosen layer, at its resid_pre."""
        what, layers = self.direction, self.layers
        if isinstance(what, Direction):
            model.check_direction(what)
            layers = what.layer if layers is None else layers
        elif layers is None:
            raise InterventionError("vectors have no layer of their own: say where to add them, e.g. layers=12")
        else:
            check_size(what, model)
        coeff = self.coeff if self.coeff is not None else what.coeff if isinstance(what, Direction) else 1.0
        vector = self.strength * coeff * (what.vector if isinstance(what, Direction) else what)

        def add(x: Tensor) -> Tensor:
            full = wide(x)
            if vector.ndim == 1:
                return (full + vector.to(full)).to(x.dtype)
            return (by_candidate(full, len(vector)) + vector[:, None].to(full)).to(x.dtype).reshape(x.shape)

        edit = Scoped(add, Where(model, self))
        return [(f"blocks.{layer}.hook_resid_pre", edit) for layer in layers_of(layers, model.n_layers)]

    def placebo(self, seed: int) -> Add:
        """Addition of a random vector of equal norm."""
        return replace(self, direction=_placebo_of(self.direction, seed))

    def _subject(self) -> str:
        times = "" if self.coeff is None or isinstance(self.direction, Tensor) else f"{self.coeff:g} x "
        return times + subject_of(self.direction)


@dataclass(frozen=True)
class Twins(HookIntervention):
    """An ablation beside placebos that move every token as far as the ablation does, along random directions.

    A batch holds each prompt 1 + len(seeds) times in succession. The first row of a prompt is ablated; at every site
    the other rows, its twins, move as far as it has just moved there. A placebo that measured its own distance at every
    block would move again and again, since it removes nothing.

    Attributes:
        edit: the ablation, of one direction or one subspace.
        seeds: of the twins' directions.

    Raises:
        InterventionError: an edit with positions, or one per candidate; a batch without the twins.

    Example:
        >>> with model.hooks(rl.hooks.Twins(rl.Ablate(found), seeds=(1,))):
        ...     ablated, placebo = model.last_logits(["How do I pick a lock?"] * 2)
    """

    edit: Ablate
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.edit.counts_positions or self.edit.per_candidate:
            raise InterventionError("twins follow an ablation at all positions, of one direction or subspace")

    def hooks(self, model: Model) -> Hooks:
        """Those of the edit, with the twins' moves."""
        rows = self.edit.rows(self.edit.vectors(model))
        others = torch.stack([random_like(rows, seed) for seed in self.seeds])
        return [(name, partial(self._both, edit, rows, others)) for name, edit in self.edit.hooks(model)]

    def _both(self, edit: Callable, rows: Tensor, others: Tensor, x: Tensor, hook: Any) -> Tensor:
        n = 1 + len(others)
        if len(x) % n:
            raise InterventionError(f"a batch of {len(x)} rows does not hold every prompt {n} times in succession")
        first, twins = x.reshape(-1, n, *x.shape[1:]).split([1, n - 1], dim=1)
        new = edit(first[:, 0], hook)
        moves = wide(new) - wide(first[:, 0])
        elsewhere = torch.einsum("bpk,skd->bspd", moves @ rows.to(moves).mT, others.to(moves))
        return torch.cat([new[:, None], (wide(twins) + elsewhere).to(x.dtype)], dim=1).reshape(x.shape)

    def _subject(self) -> str:
        return f"{self.edit.label} and {len(self.seeds)} placebos of the same moves"


@dataclass(frozen=True)
class NormMatchedPlacebo(HookIntervention):
    """Given changes added at the prompts' last positions: as large as another intervention's, in other directions.

    TransformerLens's class of this name (``tools.analysis.interchange``) matches the move at one hook point while it
    runs; the changes here were measured in the other intervention's own run, so that several layers match too.

    Attributes:
        changes: by hook point, what to add at the last positions; one row per prompt, or one for all.
    """

    changes: Mapping[str, Float[Tensor, "row last d_model"]]

    counts_positions = True  # it acts at the last positions of prompts

    @classmethod
    def between(
        cls,
        before: Mapping[str, Float[Tensor, "row last d_model"]],
        after: Mapping[str, Float[Tensor, "row last d_model"]],
        seed: int,
    ) -> NormMatchedPlacebo:
        """As large a change at each hook point, prompt and position as between two runs, in a random direction.

        Args:
            before, after: activations at the same hook points without and with the intervention that is matched.
            seed: of the directions, one per hook point and prompt.
        """
        generator = torch.Generator().manual_seed(seed)
        changes = {}
        for name in before:
            size = wide(after[name] - before[name]).norm(dim=-1, keepdim=True)
            noise = torch.randn(len(size), 1, before[name].shape[-1], generator=generator, dtype=torch.float64)
            changes[name] = size * (noise / noise.norm(dim=-1, keepdim=True)).to(size)
        return cls(changes)

    def hooks(self, model: Model) -> Hooks:
        """One hook per hook point of the chosen layers."""
        where, layers = Where(model, self), layers_of(self.layers, model.n_layers)
        return [
            (name, at_last(where, change.shape[1], self._push(where, change)))
            for name, change in self.changes.items()
            if int(name.split(".")[1]) in layers
        ]

    def _push(self, where: Where, change: Tensor) -> Change:
        return lambda x: x + (self.strength * where.rows(change)).to(x)

    def placebo(self, seed: int) -> NormMatchedPlacebo:
        """Changes of equal norm in other random directions."""
        zero = {name: torch.zeros_like(change) for name, change in self.changes.items()}
        return replace(self, changes=self.between(zero, self.changes, seed).changes)


def at_last(where: Where, n: int, change: Change) -> Callable:
    """A hook function that changes the last ``n`` tokens of the prompts, at the chosen positions; not replies."""

    def edit(x: Tensor, hook: Any) -> Tensor:
        if not where.in_prompt(x.shape[1]):
            return x
        if x.shape[1] < n:
            raise InterventionError(
                f"{where.intervention.label} sets the last {n} tokens, and the prompts run have {x.shape[1]} at most"
            )
        chosen = None if where.intervention.positions is None else where.at(x.shape[1])
        if chosen is None and where.intervention.positions is not None:
            return x
        last, new = x[:, -n:], x.clone()
        new[:, -n:] = moved = change(last)
        if chosen is not None:
            new[:, -n:] = torch.where(chosen[:, -n:].reshape(len(x), n, *[1] * (x.ndim - 2)), moved, last)
        return new

    edit.where = where  # type: ignore[attr-defined]
    return edit
