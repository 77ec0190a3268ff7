"""Readers: what to read in a pass, as values: ``model.run(prompts, read=[Residual(direction), NextLogits()])``.

A reader names its hook points for one batch (``hooks``), reduces what they showed (``values``) and puts the batches
together (``put``, ``result``). ``model.run`` owns the rest: tokens, batches, the end of the pass, prompt order. Any
object of this form can be read; an analysis with special needs defines its own reader.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import PromptError
from ..records.direction import as_direction
from ..tensors import cosine, random_units, wide
from .base import Hooks, Model

T = TypeVar("T")


class Reader(Generic[T]):
    """What to read. ``run`` reads with a copy, so a reader itself stays a value and may be used again.

    Attributes:
        needs_logits: whether ``values`` uses the logits; without them a pass ends after the last hook that is read.
        can_pack: whether it can read rows that hold several prompts, through ``Batch.last``.
        axis: of the prompts in ``values``: the last one for numbers, the first one for raw activations.
        fill: of values with an axis of tokens, which end together: what stands before a prompt's first token.
    """

    needs_logits: ClassVar[bool] = False
    can_pack: ClassVar[bool] = False
    axis: ClassVar[int] = -1
    fill: ClassVar[float | None] = None
    rows: dict[str, Tensor]
    n: int
    width: int

    def begin(self, model: Model, tokens: Any) -> None:
        """Prepare for all prompts of a run (``Tokens``), inside of its interventions."""
        self.n, self.width, self.rows = len(tokens), tokens.ids.shape[1], {}

    def hooks(self, model: Model, batch: Any) -> Hooks:
        """(hook name, function) pairs for one batch; what the functions return is ignored."""
        return []

    def values(self, model: Model, batch: Any, logits: Tensor | None) -> dict[str, Tensor]:
        """What the batch gave, after its pass; ``logits`` [prompt, vocab] are those of the last position."""
        raise NotImplementedError

    def token_axes(self, name: str) -> tuple[int, ...]:
        """Axes of tokens in one of the ``values``: the last one, if there is a ``fill``."""
        return () if self.fill is None else (-1,)

    def put(self, indices: Sequence[int], values: dict[str, Tensor]) -> None:
        """Put a batch's values where its prompts stood, on the CPU."""
        for name, x in values.items():
            place: list[Any] = [slice(None)] * x.ndim
            place[self.axis], shape = list(indices), [*x.shape]
            shape[self.axis] = self.n
            for axis in self.token_axes(name):
                shape[axis], place[axis] = self.width, slice(self.width - x.shape[axis], None)
            if name not in self.rows:
                self.rows[name] = torch.full(shape, self.fill or 0, dtype=x.dtype)
            self.rows[name][tuple(place)] = x.cpu()

    def result(self) -> T:
        """What all prompts gave, in their order."""
        raise NotImplementedError


class Rows:
    """Results of ``model.run``: ``rows[reader]``, or one after another in the order of ``read``."""

    def __init__(self, readers: Sequence[Reader], results: Sequence[Any]):
        self._readers, self._results = tuple(readers), tuple(results)

    def __getitem__(self, reader: Reader[T]) -> T:
        return next(found for known, found in zip(self._readers, self._results, strict=True) if known is reader)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._results)

    def __len__(self) -> int:
        return len(self._results)

    def __repr__(self) -> str:
        return f"Rows({', '.join(type(reader).__name__ for reader in self._readers)})"


def vector_of(model: Model, vector: Any) -> Float[Tensor, "d_model"]:
    """A plain vector, or the unit vector of what holds a direction, refused on another model; on the model's device, in
    float64 where the model has it, else in float32."""
    if not isinstance(vector, Tensor):
        model.check_direction(direction := as_direction(vector))
        vector = direction.unit
    return vector.to(model.device, torch.promote_types(model.dtype, torch.float32))


def without_padding(x: Tensor, mask: Tensor, axis: int = 1) -> Tensor:
    """Activations ``[batch, ...]``, 0 at padding on an axis of tokens."""
    shape = [n if i in (0, axis) else 1 for i, n in enumerate(x.shape)]
    return x.masked_fill(~mask.to(x.device).view(shape), 0)


def at(pos: int) -> slice:
    """Position ``pos`` as a slice that keeps the axis; a ``PromptError`` for one counted from the start, which padding
    would shift."""
    if pos >= 0:
        raise PromptError(f"position {pos} counts from the start; count from the end (-1 is the last token)")
    return slice(pos, pos + 1 or None)


def check_position(tokens: Any, pos: int) -> None:
    """Refuse a position before the first token of the shortest prompt."""
    at(pos)
    if -pos > int(tokens.lengths.min()):
        raise PromptError(
            f"position {pos} lies before the first token of a prompt of {int(tokens.lengths.min())} tokens"
        )


def resid_sites(n_layers: int) -> list[str]:
    """resid_pre of every layer and resid_post of the last one."""
    return [f"blocks.{layer}.hook_resid_pre" for layer in range(n_layers)] + [f"blocks.{n_layers - 1}.hook_resid_post"]


class Kept(Reader[T]):
    """A reader that keeps some positions of its hook points until the pass has ended.

    Attributes:
        names: hook points, from ``begin`` on.
        where: positions to keep (axis 1); None keeps all.
        kept: hook point -> activations, after a pass.
    """

    names: Sequence[str]
    where: slice | None
    kept: dict[str, Tensor]

    def hooks(self, model: Model, batch: Any) -> Hooks:
        self.kept = {}
        return [(name, partial(self._keep, name)) for name in self.names]

    def _keep(self, name: str, x: Tensor, hook: Any) -> None:
        self.kept[name] = (x if self.where is None else x[:, self.where]).clone()


@dataclass(eq=False)
class Cache(Kept[dict[str, Tensor]]):
    """Raw activations by TransformerLens's hook names, as ``run_with_cache`` gives them: prompts on the first axis.

    Attributes:
        names: e.g. ``blocks.3.hook_resid_pre``.
        positions: keep these positions only, counted from the end (``slice(-5, None)``); with None all positions are
            kept, prompts end at the last position, and padding of shorter ones is 0.

    Example:
        >>> (kept,) = model.run(data.harmful.test[:4], read=rl.hooks.Cache(["blocks.2.attn.hook_z"], slice(-1, None)))
        >>> kept["blocks.2.attn.hook_z"].shape
        torch.Size([4, 1, 4, 24])
    """

    names: Sequence[str]
    positions: slice | None = None
    axis: ClassVar[int] = 0

    def begin(self, model: Model, tokens: Any) -> None:
        super().begin(model, tokens)
        names = [self.names] if isinstance(self.names, str) else self.names
        self.names, self.where = list(dict.fromkeys(names)), self.positions

    def values(self, model: Model, batch: Any, logits: Tensor | None) -> dict[str, Tensor]:
        found = dict(self.kept)
        for name in found:
            for axis in self.token_axes(name):
                found[name] = without_padding(found[name], batch.mask, axis)
        return found

    def token_axes(self, name: str) -> tuple[int, ...]:
        """[batch head dest src] of patterns and scores, else [batch pos ...]."""
        whole = (2, 3) if name.endswith(("hook_pattern", "hook_attn_scores")) else (1,)
        return whole if self.positions is None else ()

    def result(self) -> dict[str, Tensor]:
        return {name: self.rows[name] for name in self.names}


@dataclass(eq=False)
class NextLogits(Reader[Tensor]):
    """Next-token logits after each prompt, [prompt, vocab]."""

    needs_logits: ClassVar[bool] = True
    can_pack: ClassVar[bool] = True
    axis: ClassVar[int] = 0

    def values(self, model: Model, batch: Any, logits: Tensor | None) -> dict[str, Tensor]:
        assert logits is not None
        return {"logits": logits}

    def result(self) -> Float[Tensor, "prompt vocab"]:
        return self.rows["logits"]


@dataclass(eq=False)
class Activations(Reader[Tensor]):
    """resid_pre of every layer at the last positions, float32 or better, [prompt, pos, layer, d_model].

    Attributes:
        n_last: number of positions; the post-instruction ones if None.
    """

    n_last: int | None = None
    can_pack: ClassVar[bool] = True
    axis: ClassVar[int] = 0

    def begin(self, model: Model, tokens: Any) -> None:
        super().begin(model, tokens)
        self.count = tokens.n_post if self.n_last is None else self.n_last
        check_position(tokens, -self.count)

    def hooks(self, model: Model, batch: Any) -> Hooks:
        self.layers: list[Tensor] = []

        def keep(x: Tensor, hook: Any) -> None:
            self.layers.append(wide(batch.last(x, self.count).clone()).to(model.device))

        return [(f"blocks.{layer}.hook_resid_pre", keep) for layer in range(model.n_layers)]

    def values(self, model: Model, batch: Any, logits: Tensor | None) -> dict[str, Tensor]:
        return {"resid": torch.stack(self.layers, 2)}

    def result(self) -> Float[Tensor, "prompt pos layer d_model"]:
        return self.rows["resid"]


class Projections(NamedTuple):
    """The residual stream on a vector, by layer (resid_pre of each, then resid_post of the last).

    Attributes:
        projection: x · r̂.
        cosine: of x and r̂.
        highest: largest x · r̂ over the region, or at the position itself.
    """

    projection: Float[Tensor, "site prompt"]
    cosine: Float[Tensor, "site prompt"]
    highest: Float[Tensor, "site prompt"]


@dataclass(eq=False)
class Residual(Reader[Projections]):
    """The residual stream on a direction at every layer: at one position, or at the last token of a region.

    Attributes:
        vector: a direction, or a result that has one (its unit vector is used), or a vector.
        positions: counted from the end, or the name of a region that every prompt has, such as "instruction".

    Example:
        >>> at_end, inside = rl.hooks.Residual(found), rl.hooks.Residual(found, "instruction")
        >>> rows = model.run(data.harmful.test[:4], read=[at_end, inside])  # one pass
        >>> rows[at_end].cosine.shape, rows[inside].highest.shape
        (torch.Size([6, 4]), torch.Size([6, 4]))
    """

    vector: Any
    positions: int | str = -1

    def begin(self, model: Model, tokens: Any) -> None:
        super().begin(model, tokens)
        self.r = vector_of(model, self.vector)
        if isinstance(self.positions, int):
            check_position(tokens, self.positions)

    def hooks(self, model: Model, batch: Any) -> Hooks:
        self.found: list[tuple[Tensor, Tensor, Tensor]] = []
        if isinstance(self.positions, int):
            read = self._at_position
        else:
            inside = batch.region(self.positions)
            last = torch.where(inside, torch.arange(inside.shape[1], device=inside.device), -1).amax(-1)
            if int(last.min()) < 0:
                raise PromptError(f"a prompt has no {self.positions}: read another region, or only prompts with one")
            read = partial(self._at_region, inside, last, torch.arange(len(batch), device=last.device))
        return [(name, read) for name in resid_sites(model.n_layers)]

    def _at_position(self, x: Tensor, hook: Any) -> None:
        assert isinstance(self.positions, int)
        here = wide(x[:, self.positions].clone()).to(self.r)
        along = here @ self.r
        self.found.append((along, cosine(here, self.r), along))

    def _at_region(self, inside: Tensor, last: Tensor, rows: Tensor, x: Tensor, hook: Any) -> None:
        along = wide(x).to(self.r) @ self.r
        here = wide(x[rows, last]).to(self.r)
        self.found.append((here @ self.r, cosine(here, self.r), along.masked_fill(~inside, float("-inf")).amax(-1)))

    def values(self, model: Model, batch: Any, logits: Tensor | None) -> dict[str, Tensor]:
        columns = map(torch.stack, zip(*self.found, strict=True))
        return dict(zip(Projections._fields, columns, strict=True))

    def result(self) -> Projections:
        return Projections(**self.rows)


@dataclass(eq=False)
class EveryToken(Reader[dict[str, Tensor]]):
    """The residual stream along a direction at every layer and token, each [site, prompt, token].

    Prompts end at the last token, NaN before their first. The result has ``projection`` and ``cosine`` (resid_pre of
    each layer, then resid_post of the last), and what the settings ask for.

    Attributes:
        vector: a direction, or a result that has one (its unit vector counts), or a vector.
        writes: ``attn`` and ``mlp`` too, what each layer's attention and MLP write along r̂.
        n_random: ``low`` and ``high`` too, the range of the projections on so many random unit vectors.

    Example:
        >>> (grids,) = model.run(data.harmful.test[:2], read=rl.hooks.EveryToken(found, n_random=19))
        >>> sorted(grids), len(grids["high"])
        (['cosine', 'high', 'low', 'projection'], 6)
    """

    vector: Any
    writes: bool = False
    n_random: int = 0
    axis: ClassVar[int] = -2
    fill: ClassVar[float | None] = float("nan")

    def begin(self, model: Model, tokens: Any) -> None:
        super().begin(model, tokens)
        self.r = vector_of(model, self.vector)
        self.random = random_units(self.n_random, len(self.r)).T.to(self.r) if self.n_random else None

    def hooks(self, model: Model, batch: Any) -> Hooks:
        self.found: dict[str, list[Tensor]] = {}
        hooks: Hooks = []
        for layer, name in enumerate(resid_sites(model.n_layers)):
            hooks.append((name, partial(self._on_stream, batch.mask)))
            if self.writes and layer < model.n_layers:
                for what in ("attn", "mlp"):
                    hooks.append((f"blocks.{layer}.hook_{what}_out", partial(self._on_write, batch.mask, what)))
        return hooks

    def _on_stream(self, mask: Tensor, x: Tensor, hook: Any) -> None:
        full = wide(x).to(self.r)
        found = {"projection": full @ self.r, "cosine": cosine(full, self.r)}
        if self.random is not None:
            found["low"], found["high"] = (full @ self.random).aminmax(dim=-1)
        self._keep(mask, found)

    def _on_write(self, mask: Tensor, what: str, x: Tensor, hook: Any) -> None:
        self._keep(mask, {what: wide(x).to(self.r) @ self.r})

    def _keep(self, mask: Tensor, values: dict[str, Tensor]) -> None:
        for name, x in values.items():
            self.found.setdefault(name, []).append(x.masked_fill(~mask, float("nan")))

    def values(self, model: Model, batch: Any, logits: Tensor | None) -> dict[str, Tensor]:
        return {what: torch.stack(layers) for what, layers in self.found.items()}

    def result(self) -> dict[str, Tensor]:
        return self.rows
