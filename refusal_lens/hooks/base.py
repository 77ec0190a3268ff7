"""The parts that all interventions share: where they act, how strongly, and what they need to know about a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import DirectionError, InterventionError
from ..records.labels import REGIONS

HookFn = Callable[..., Any]
Hooks = list[tuple[str, HookFn]]
Layers = int | slice | Sequence[int] | None
Positions = str | slice | tuple[str | slice, ...] | None
PLACES = ("prompt", "reply", "system", "earlier", "thought", *REGIONS)


@runtime_checkable
class Batch(Protocol):
    """The part of ``Tokens`` from which positions are resolved."""

    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]

    @property
    def spans(self) -> tuple[Any, ...]: ...
    @property
    def indices(self) -> tuple[int, ...]: ...


@runtime_checkable
class Model(Protocol):
    """The part of ``HookedChatModel`` that interventions, readers and passes use."""

    name: str
    tl: Any
    chat: Any
    backend: Any
    running: Any
    packs: bool | None
    n_layers: int
    n_heads: int
    d_model: int
    d_head: int

    @property
    def device(self) -> Any: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def basis(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    def check_direction(self, direction: Any) -> None: ...
    def hooks(self, *interventions: Any) -> AbstractContextManager: ...
    def tokenize(self, prompts: Any, suffixes: Any = None) -> Any: ...
    def logits(self, tokens: Any) -> Any: ...
    def cache(self, tokens: Any, names: Any) -> dict[str, Any]: ...
    def writing_weights(self) -> list[Any]: ...


@dataclass(frozen=True)
class Intervention:
    """A change to a model, as a value: ``with model.hooks(intervention): ...`` or ``intervention.applied(model)``.

    Attributes:
        layers: the layers where it acts: a number, a slice, several numbers, or None for all.
        positions: the tokens at which it acts: "prompt", "reply", a region of the prompt ("bos", "template_pre",
            "instruction", "suffix", "template_post") or a part of one ("system", "earlier" for the turns before the
            request, "thought" for a closed one), a slice counted from the prompt's end (``slice(-5, None)``), several
            of these, or None for all.
        strength: 1 for the whole change; other values scale it, 0 changes nothing.
    """

    layers: Layers = field(default=None, kw_only=True)
    positions: Positions = field(default=None, kw_only=True)
    strength: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.strength, (int, float)) or not math.isfinite(self.strength):
            raise InterventionError(f"strength={self.strength!r}: give a number; 1 is the whole change")
        if isinstance(self.positions, list):
            object.__setattr__(self, "positions", tuple(self.positions))
        for place in _places(self.positions):
            if isinstance(place, slice):
                bounds = [b for b in (place.start, place.stop) if b is not None]
                empty = len(bounds) == 2 and not bounds[0] < bounds[1]
                if place.step is not None or empty or any(not isinstance(b, int) or b >= 0 for b in bounds):
                    raise InterventionError(
                        f"positions={place!r}: count from the prompt's end, without steps, e.g. slice(-5, None) for "
                        "the last five tokens"
                    )
            elif place not in PLACES:
                raise InterventionError(
                    f"there are no positions {place!r}; choose from {', '.join(PLACES)}, or a slice"
                )

    def applied(self, model: Model) -> AbstractContextManager:
        """Context in which the intervention is active on ``model``."""
        return model.hooks(self)

    @property
    def counts_positions(self) -> bool:
        """Whether it acts at some positions only, so that passes must know where their prompts stand."""
        return self.positions is not None

    @property
    def by_row(self) -> bool:
        """Whether each token is changed as it is alone, whatever else is in the batch."""
        return False

    def placebo(self, seed: int) -> Intervention:
        """The control: the same kind of intervention along a random direction of equal norm."""
        raise InterventionError(f"{type(self).__name__} has no placebo; compare it with another intervention")

    @property
    def label(self) -> str:
        """Name for tables and figures, e.g. ``Ablate (-1, 12), positions suffix``."""
        parts = [" ".join(filter(None, (type(self).__name__, self._subject())))]
        for name in ("layers", "positions", "strength"):
            value, default = getattr(self, name), next(f.default for f in fields(self) if f.name == name)
            parts += [] if value == default else [f"{name} {_shown(value)}"]
        return ", ".join(parts)

    def _subject(self) -> str:
        return ""


class HookIntervention(Intervention):
    """An intervention on activations."""

    def hooks(self, model: Model) -> Hooks:
        """(hook name, function) pairs; functions return new tensors and never edit in place."""
        raise NotImplementedError


def _places(positions: Positions) -> tuple[Any, ...]:
    return () if positions is None else positions if isinstance(positions, tuple) else (positions,)


def _shown(value: Any) -> str:
    if isinstance(value, slice):
        return f"{'' if value.start is None else value.start}:{'' if value.stop is None else value.stop}"
    return ", ".join(map(_shown, value)) if isinstance(value, (tuple, list, range)) else f"{value}"


def layers_of(layers: Layers, n_layers: int) -> list[int]:
    """The chosen layers in rising order; an ``InterventionError`` for one that the model lacks, or none."""
    if layers is None or isinstance(layers, slice):
        found = list(range(n_layers))[layers or slice(None)]
    else:
        found = sorted(set(layers)) if isinstance(layers, Sequence) and not isinstance(layers, str) else [layers]
    known = range(n_layers)
    if not found or not all(not isinstance(layer, bool) and layer in known for layer in found):
        raise InterventionError(f"layers={_shown(layers)}: choose from 0 to {n_layers - 1}, the layers of this model")
    return [int(layer) for layer in found]


def write_sites(n_layers: int, layers: Layers = None) -> list[str]:
    """The hook points of every write into the residual stream: the input of block 0 (counted to layer 0), then each
    layer's attn_out and mlp_out, after post-norms if any. Sets with resid_mid are not exact on a bridge."""
    chosen = layers_of(layers, n_layers)
    return (["blocks.0.hook_resid_pre"] if 0 in chosen else []) + [
        f"blocks.{layer}.{site}" for layer in chosen for site in ("hook_attn_out", "hook_mlp_out")
    ]


def check_size(vectors: Tensor, model: Model) -> None:
    """Refuse vectors whose last axis is not d_model with a ``DirectionError``."""
    if vectors.shape[-1] != model.d_model:
        raise DirectionError(
            f"vectors of {vectors.shape[-1]} entries do not fit {model.name}, whose d_model is {model.d_model}"
        )


class Where:
    """The positions of an intervention in each pass of a model, resolved from the batch under way.

    Prompts end together at the right of a batch, so that positions are counted from there: the same in a whole pass, in
    one that continues from cached keys and values, and in a decoding step.
    """

    def __init__(self, model: Model, intervention: Intervention):
        self.model, self.intervention = model, intervention
        self.met: dict[str, bool] = {}
        self.edited: Tensor | None = None
        self._kept: dict[tuple, tuple[Any, Tensor | None]] = {}

    @property
    def batch(self) -> Batch:
        """The batch under way; an ``InterventionError`` in a pass of others, or whose rows hold several prompts."""
        if self.model.running is None:
            raise InterventionError(
                f"{self.intervention.label} counts positions, which this pass does not know: run prompts through the "
                "model's own logits, cache, generate or run"
            )
        return self.model.running

    def in_prompt(self, width: int) -> bool:
        """Whether a pass over ``width`` tokens is that over the prompts, not a decoding step."""
        return width == self.batch.ids.shape[1]

    def at(self, width: int, positions: Positions = None, keys: int | None = None) -> Bool[Tensor, "batch pos"] | None:
        """Mask of the intervention's (or other) positions among ``width`` tokens, or among ``keys`` keys and values,
        cached ones included, of which the last ``width`` are of this pass; None where there are none."""
        batch, wanted = self.batch, self.intervention.positions if positions is None else positions
        place = (width, keys, str(wanted))
        if place not in self._kept or self._kept[place][0] is not batch:
            first, n = batch.ids.shape[1] - width, keys or width  # of a decoding step, any column after the prompt
            if not self.in_prompt(width):
                first = 0 if keys else batch.ids.shape[1]
            elif keys:
                first = width - keys
            mask = _chosen(batch, wanted, torch.arange(first, first + n, device=batch.ids.device))
            self._kept[place] = batch, mask if bool(mask.any()) else None
        self.met[str(wanted)] = self.met.get(str(wanted), False) or self._kept[place][1] is not None
        return self._kept[place][1]

    def rows(self, values: Tensor, axis: int = 0) -> Tensor:
        """Of values with one row per prompt (or one row for all), those of the batch under way; too few rows are an
        ``InterventionError``."""
        n, indices = values.shape[axis], self.batch.indices
        if n == 1 or indices == tuple(range(n)):
            return values
        if max(indices) >= n:
            raise InterventionError(
                f"{type(self.intervention).__name__} has values for {n} prompts, and prompt {max(indices)} is run, "
                "counted from 0: give one row per prompt, or one for all"
            )
        return values.index_select(axis, torch.tensor(indices, device=values.device))

    def spared(self, massive: Bool[Tensor, "*tokens 1"]) -> None:
        """Note which tokens a form left alone; kept on the device, so that no pass waits for it."""
        batch, edited = self.model.running, ~massive
        if batch is not None and massive.numel() == batch.mask.numel():
            edited = edited.reshape(batch.mask.shape) & batch.mask.to(edited.device)
        found = edited.any()
        self.edited = found if self.edited is None else self.edited | found.to(self.edited.device)

    def check(self) -> None:
        """Raise an ``InterventionError`` where none of its positions was met, or no token but massive ones."""
        if self.edited is not None and not bool(self.edited):
            raise InterventionError(
                f"{self.intervention.label}: every token was massive by the statistics' norms, so nothing changed: "
                "make statistics of prompts like these, or give a Form with spare=False"
            )
        for wanted, met in self.met.items():
            if not met:
                raise InterventionError(
                    f"{self.intervention.label}: no token was at positions {wanted}, so nothing changed: no prompt has "
                    "such a region or is long enough, or no reply was generated"
                )


def _chosen(batch: Batch, positions: Positions, column: Int[Tensor, "pos"]) -> Bool[Tensor, "batch pos"]:
    """Which of the columns, counted as in ``batch.ids``, are at ``positions`` in each row."""
    spans, device = batch.spans, column.device
    length = torch.tensor([span.template_post[1] for span in spans], device=device)[:, None]
    # Tokens after a prompt's own (a text with its reply) follow its end in the same row.
    after = (batch.mask.sum(-1).to(device)[:, None] - length).clamp_min(0)
    place = column[None] - (batch.ids.shape[1] - after)  # below 0 in the prompt
    found = torch.zeros(len(spans), len(column), dtype=torch.bool, device=device)
    for wanted in _places(positions):
        if wanted == "reply":
            found |= place >= 0
            continue
        low, high = -length, torch.zeros_like(length)
        if isinstance(wanted, slice):
            low = low if wanted.start is None else low.clamp_min(wanted.start)
            high = high if wanted.stop is None else high + wanted.stop
        elif wanted != "prompt":
            bounds = torch.tensor([getattr(span, wanted) for span in spans], device=device)
            low, high = bounds[:, :1] - length, bounds[:, 1:] - length
        found |= (place >= low) & (place < high)
    return found


@dataclass(frozen=True, eq=False)
class Scoped:
    """A hook function that changes activations ``[batch, pos, d]`` at the chosen positions only."""

    change: Callable[[Tensor], Tensor]
    where: Where

    def __call__(self, x: Tensor, hook: Any) -> Tensor:
        if not self.where.intervention.counts_positions:
            return self.change(x)
        chosen = self.where.at(x.shape[1])
        return x if chosen is None else torch.where(chosen[..., None].to(x.device), self.change(x), x)


def scopes(pairs: Hooks) -> Iterator[Where]:
    """Where the hook functions of ``pairs`` act, once each."""
    return iter({id(w): w for _, fn in pairs if (w := getattr(fn, "where", None)) is not None}.values())
