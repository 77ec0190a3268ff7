"""Patching grids: each cell of one run (layer x position, or layer x head) put into the other run of the prompts."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.prompts import PromptsLike, as_prompts
from ..engines.base import Engine
from ..engines.local import LocalEngine
from ..errors import SettingError
from ..hooks.attention import by_layer
from ..models.model import HookedChatModel
from ..progress import Progress, automatic
from ..records.direction import Direction, DirectionLike, as_direction
from ..records.labels import index_of, visible
from ..records.store import Store, content_key
from ..refusal.records import RefusalTokens
from ..tensors import refusal_log_odds, wide
from .grid_records import SITES, WAYS, PatchingGrid
from .restarts import Pair, at_random, pairs_of

LAYOUT = 2  # of stored items
ROOM = {"cpu": 512}  # tokens of a pass, so that passes of a small model hold several cells
ROOM_ELSEWHERE = 16384
SLACK = 0.05  # relative change before the suffix that is more than rounding
_Item = tuple[int, int, list[list[int]]]  # batch, layer, places of each pass


def patching_grid(
    model: HookedChatModel,
    prompts: PromptsLike,
    suffix: str,
    clean_suffixes: Sequence[str] | None,
    direction: DirectionLike,
    refusal_tokens: RefusalTokens,
    *,
    site: str = "resid_pre",
    way: str = "into suffixed",
    exact: int | None = None,
    n_placebo: int = 8,
    seed: int = 0,
    limit: float | None = None,
    folder: str | Path | None = None,
    progress: Progress = automatic,
    engine: Engine | None = None,
) -> PatchingGrid:
    """Put each cell of one run into the other, and measure the refusal metric and r̂ᵀx at the direction's layer.

    A cell is one layer and position of the suffix or of the template (for z: one head, at all of these), aligned by
    region; before the suffix nothing differs, by causality. First every cell is estimated at once by the gradient
    (attribution patching: Nanda 2023; Syed et al. 2023), then cells are patched exactly (Meng et al. 2022). A pass
    begins at the cell's layer and position: what stands before is kept as keys and values.

    Args:
        clean_suffixes: random tokens, as many as the suffix has, per prompt (``random_controls``); None for the prompts
            alone, whose template is aligned.
        site: "resid_pre", "attn_out", "mlp_out" or "z".
        way: "into suffixed" (the clean run's cells), or "into clean" (the suffixed run's cells).
        exact: patch this many cells, those with the largest estimates on the first half of the prompts; None for all.
        n_placebo: cells with the largest effects on that half, which are patched at random too.
        seed: of these changes.
        limit: seconds; a grid that would take longer is refused before it begins.
        folder: keep what is done here, layer by layer, and take it from here with the same inputs.
        progress: shows passes; its name tells the time and size expected (on one worker).
        engine: spreads batches and layers over its workers; this process if None.

    Raises:
        PromptError: a suffix across the boundary, or clean suffixes of another length.
        SettingError: more time than ``limit``, or more space than the folder's disk has.
        ModelError: z of a layer without heads.
        LabelError: no such site or way.

    Example:
        >>> prompts, suffix, tokens = data.harmful.test[:2].texts, " please", found.refusal_tokens
        >>> drawn = rl.hijacking.random_controls(model.chat, prompts, suffix).texts
        >>> grid = rl.hijacking.patching_grid(model, prompts, suffix, drawn, found, tokens, exact=6, n_placebo=2)
        >>> len(grid.measured), grid.sizes["layer"], grid.causality < 1e-3
        (6, 5, True)
    """
    requests, direction, engine = as_prompts(prompts), as_direction(direction), engine or LocalEngine(model)
    model.check_direction(direction)
    job = engine.state(_Cells(requests, suffix, clean_suffixes, direction, refusal_tokens.ids, site, way))
    items = job.items(exact)
    forecast, total = job.forecast(items, limit, folder)
    with progress(f"patch {site} {way} ({forecast})", total) as advance:
        effects = job.grid(items, engine, Store(folder) if folder else None, advance)
        top = job.ranked(effects, n_placebo)
        placebo = job.placebo(top, seed)
    return PatchingGrid(
        site=site,
        way=way,
        clean="plain" if clean_suffixes is None else "random",
        places=job.labels(),
        effects=effects.float(),
        estimate=None if job.estimate is None else job.estimate.float(),
        into=job.ends[0],
        source=job.ends[1],
        top=top,
        placebo=placebo.float(),
        n_chosen=job.n // 2,
        causality=job.causality,
        layer=direction.layer,
        seconds=job.seconds,
        passes=job.passes,
        forecast=forecast,
        notes=tuple(job.notes),
    )


@dataclass(frozen=True)
class _Cells:
    """The cells of a batch and layer, as work for an engine."""

    prompts: list[str]
    suffix: str
    clean: Sequence[str] | None
    direction: Direction
    ids: tuple[int, ...]
    site: str
    way: str

    def key(self, model: HookedChatModel, *more: Any) -> str:
        """Digest of everything that decides an item's result."""
        inputs = [model.fingerprint, str(model.dtype), model.chat.render("{}"), self.prompts, self.suffix, self.clean]
        about = self.direction.unit, self.direction.layer, self.ids, self.site, self.way
        return content_key(content_key(LAYOUT, *inputs, *about), *more)

    def prepare(self, model: HookedChatModel) -> _Job:
        """Both runs as they are, and the gradient's estimate of every cell."""
        return _Job(model, self)

    def run(self, model: HookedChatModel, job: _Job, item: _Item) -> dict[str, Tensor]:
        """Effects of patches in groups of places, in that order, and the seconds."""
        batch, layer, groups = item
        begin = time.perf_counter()
        found = torch.cat([job.patched(batch, layer, some) for some in groups], 1)
        took = torch.tensor(time.perf_counter() - begin, dtype=torch.float64)
        return {"effects": found, "seconds": took}


@dataclass
class _Job:
    """All batches of a grid."""

    model: HookedChatModel
    work: _Cells
    notes: list[str] = field(default_factory=list)
    estimate: Float[Tensor, "value layer place prompt"] | None = None
    causality: float = 0.0
    seconds: float = 0.0
    passes: int = 0

    def __post_init__(self) -> None:
        model, work, self.n = self.model, self.work, len(self.work.prompts)
        self.direction, self.site = work.direction, work.site
        index_of(SITES, self.site, "site", "patching")
        if self.site == "z":
            for layer in range(model.n_layers):
                model.backend.output_weight(layer)  # refuses a layer without heads
        self.pairs = pairs_of(model, work.prompts, work.suffix, work.clean, work.way)
        self.n_last = self.pairs[0].into.n_last
        self.places = model.n_heads if self.site == "z" else self.n_last
        self.r = self.direction.unit.to(model.device, torch.promote_types(model.dtype, torch.float32))
        point = "attn.hook_z" if self.site == "z" else f"hook_{self.site}"
        self.names = [f"blocks.{layer}.{point}" for layer in range(model.n_layers)]
        self.ends = torch.zeros(2, 2, self.n, dtype=torch.float64)  # into and source, value
        self.given: list[dict[str, Tensor]] = []
        self.room = ROOM.get(model.device.type, ROOM_ELSEWHERE)
        estimates = torch.zeros(2, model.n_layers, self.places, self.n, dtype=torch.float64)
        at = f"blocks.{self.direction.layer}.hook_resid_pre"
        for pair in self.pairs:
            for end, run in zip(self.ends, (pair.into, pair.source), strict=True):
                end[0, pair.rows] = self._metric(model.logits(run.tokens)[:, -1])
                end[1, pair.rows] = (wide(run.read([at], 1)[at][:, 0]).to(self.r) @ self.r).double().cpu()
            self.given.append(pair.source.read(self.names, self.n_last))
            self._check(pair)
            self._estimate(pair, self.given[-1], estimates)

    def labels(self) -> tuple[str, ...]:
        """Heads; or positions from the end with the suffixed run's tokens after the first prompt."""
        if self.site == "z":
            return tuple(f"H{head}" for head in range(self.places))
        (pair,) = (p for p in self.pairs if 0 in p.rows)
        run = pair.into if self.work.way == WAYS[0] else pair.source
        ids = run.tokens.ids[pair.rows.index(0), -self.n_last :].tolist()
        texts = [visible(self.model.tokenizer.decode([token])) for token in ids]
        return tuple(f"{i - self.n_last} {text}" for i, text in enumerate(texts))

    def _check(self, pair: Pair) -> None:
        """Nothing may differ at the last token before the suffix."""
        x, y = (
            wide(run.read(self.names[-1:], run.tokens.n_post + b - a + 1)[self.names[-1]][0, 0]).flatten()
            for run in (pair.into, pair.source)
            for a, b in (run.tokens.spans[0].suffix,)
        )
        self.causality = max(self.causality, float((x - y).norm() / y.norm().clamp_min(1e-30)))
        if self.causality > SLACK and not any("before the suffix" in note for note in self.notes):
            self.notes.append(
                f"activations before the suffix differ by {self.causality:.2g} of their norm between both runs: this "
                "model's positions or attention depend on what follows or on the length"
            )

    def _estimate(self, pair: Pair, given: dict[str, Tensor], out: Tensor) -> None:
        """Gradient times difference, summed over what a cell holds."""
        if self.notes and "no gradient" in self.notes[-1]:
            return
        metric = partial(refusal_log_odds, token_ids=self.work.ids)
        here = pair.into.read(self.names, self.n_last)
        try:
            slopes = pair.into.gradients(self.names, metric, (self.direction.layer, self.r))
        except (RuntimeError, NotImplementedError) as error:
            self.estimate = None
            self.notes.append(f"no gradient on this model ({str(error).splitlines()[0][:120]}): cells are patched only")
            return
        for layer, (name, slope) in enumerate(zip(self.names, slopes, strict=True)):
            step = wide(slope) * (wide(given[name]) - wide(here[name]))
            if self.site == "z":
                step = step.flatten(3).unflatten(-1, (self.model.n_heads, -1)).sum(2)
            out[:, layer, :, pair.rows] = step.sum(-1).transpose(1, 2).double().cpu()
        self.estimate = out

    def _metric(self, logits: Tensor) -> Tensor:
        return refusal_log_odds(logits, self.work.ids).double().cpu()

    def ranked(self, effects: Tensor, most: int) -> tuple[tuple[int, int], ...]:
        """The cells with the largest effects on the metric, mean over the first half of the prompts."""
        size = effects[0, :, :, : max(1, self.n // 2)].mean(-1).abs()
        order = size.nan_to_num(-1).flatten().argsort(descending=True, stable=True)[:most].tolist()
        cells = [divmod(i, self.places) for i in order]
        return tuple(cell for cell in cells if not bool(size[cell].isnan()))

    # -- passes ---------------------------------------------------------------------------------------------
    def groups(self, rows: int, places: Sequence[int]) -> Iterator[list[int]]:
        """Places of one layer that are patched in one pass, of which each is a copy of the batch."""
        some: list[int] = []
        for place in sorted(places, reverse=True):
            if some and (len(some) + 1) * rows * self.tail([*some, place]) > self.room:
                yield some
                some = []
            some.append(place)
        if some:
            yield some

    def tail(self, places: Sequence[int]) -> int:
        """Positions at the end that a patch of these places changes."""
        return self.n_last if self.site == "z" else self.n_last - min(places)

    def items(self, exact: int | None) -> list[_Item]:
        """Batch, layer and groups of places: of all cells, or of those with the largest estimates."""
        cells: Iterable[tuple[int, int]] = product(range(self.model.n_layers), range(self.places))
        if exact is not None and self.estimate is not None:
            cells = self.ranked(self.estimate, exact)
        by_batch = product(enumerate(self.pairs), by_layer(sorted(cells)).items())
        return [(i, layer, list(self.groups(len(pair.rows), some))) for (i, pair), (layer, some) in by_batch]

    def forecast(self, items: list[_Item], limit: float | None, folder: str | Path | None) -> tuple[str, int]:
        """Time and size in words, from one pass in the middle, and the number of passes; refuses too large a grid."""
        passes = [(i, layer, some) for i, layer, groups in items for some in groups]
        costs = [
            len(self.pairs[i].rows) * len(some) * self.tail(some) * (self.model.n_layers - layer)
            for i, layer, some in passes
        ]
        total, seconds, n_bytes = len(passes), 0.0, 8 * 2 * self.model.n_layers * self.places * self.n
        if passes:
            middle = sorted(range(total), key=costs.__getitem__)[total // 2]
            self.patched(*passes[middle])  # the first pass packs weights
            begin = time.perf_counter()
            self.patched(*passes[middle])
            seconds = (time.perf_counter() - begin) * max(total, sum(costs) / max(1, costs[middle]))
        n_cells = sum(len(some) for i, _, some in passes if i == 0)
        said = f"{total} passes, {n_cells} cells x {self.n} prompts, about {_duration(seconds)}, {n_bytes / 1e6:.1f} MB"
        if limit is not None and seconds > limit:
            raise SettingError(
                f"this grid needs {said}, and limit={limit:g} seconds: patch fewer cells (exact=...), use fewer "
                "prompts or raise the limit"
            )
        if folder is not None:
            there = next(path for path in (Path(folder), *Path(folder).absolute().parents) if path.exists())
            if (free := shutil.disk_usage(there).free) < 2 * n_bytes:
                raise SettingError(f"{folder} has {free / 1e6:.1f} MB left and this grid needs {2 * n_bytes / 1e6:.1f}")
        return said, total

    def grid(
        self, items: list[_Item], engine: Engine, store: Store | None, advance: Any
    ) -> Float[Tensor, "value layer place prompt"]:
        """Effects of exact patches, layer by layer, each kept in the store; NaN elsewhere."""
        keys = [self.work.key(self.model, self.pairs[i].rows, *rest) for i, *rest in items]
        names = [(f"batch-{i}/layer-{layer}", key) for (i, layer, _), key in zip(items, keys, strict=True)]
        made = engine.map("cells", self.work, items, lambda index: advance(len(items[index][2])), store, names)
        effects = torch.full((2, self.model.n_layers, self.places, self.n), float("nan"), dtype=torch.float64)
        for (i, layer, groups), item in zip(items, made, strict=True):
            for k, place in enumerate(chain(*groups)):
                effects[:, layer, place, self.pairs[i].rows] = item["effects"][:, k]
            self.seconds += float(item["seconds"])
            self.passes += len(groups)
        return effects

    def placebo(self, top: Sequence[tuple[int, int]], seed: int) -> Float[Tensor, "value top prompt"]:
        """The same cells with changes of equal norm in random directions."""
        found = torch.zeros(2, len(top), self.n, dtype=torch.float64)
        generator, begin = torch.Generator().manual_seed(seed), time.perf_counter()
        for k, (layer, place) in enumerate(top):
            for i, pair in enumerate(self.pairs):
                found[:, k, pair.rows] = self.patched(i, layer, [place], generator)[:, 0]
                self.passes += 1
        self.seconds += time.perf_counter() - begin
        return found

    def patched(
        self, i: int, layer: int, places: list[int], generator: torch.Generator | None = None
    ) -> Float[Tensor, "value place prompt"]:
        """Effects of patching each of some places of one layer."""
        pair, name, tail = self.pairs[i], self.names[layer], self.tail(places)
        given = self.given[i][name][:, -tail:]
        start = pair.into.start(layer, tail, len(places))
        along: list[Tensor] = []

        def put(x: Float[Tensor, "copy prompt pos *rest"]) -> None:
            for copy, place in zip(x, places, strict=True):
                if self.site == "z":
                    both = (y.reshape(*y.shape[:2], self.model.n_heads, -1) for y in (copy[:, -tail:], given))
                    here, wanted = (y[:, :, place] for y in both)
                else:
                    here, wanted = (y[:, place - self.n_last] for y in (copy, given))
                aside = None if generator is None else at_random(wide(wanted - here), generator)
                here[...] = wanted if aside is None else here + aside.to(here)

        def patch(x: Tensor, hook: Any) -> Tensor:
            new = x.clone().unflatten(0, (len(places), -1))
            put(new)
            return new.flatten(0, 1)

        def read(x: Tensor, hook: Any) -> None:
            along.append(wide(x[:, -1].clone()).to(self.r) @ self.r)

        hooks: list[Any] = []
        if self.site == "resid_pre":
            put(start)
        else:
            hooks.append((name, patch))
        if self.direction.layer > layer:
            hooks.append((f"blocks.{self.direction.layer}.hook_resid_pre", read))
        metric = self._metric(pair.into.logits(layer, tail, start, hooks))
        if self.direction.layer == layer and self.site == "resid_pre":
            along.append(wide(start[:, :, -1].flatten(0, 1)).to(self.r) @ self.r)
        base = self.ends[0][:, None, pair.rows]
        values = torch.stack([metric, metric]) - base
        values[1] = along[0].double().cpu().unflatten(0, (len(places), -1)) - base[1] if along else 0.0
        return values


def _duration(seconds: float) -> str:
    if seconds < 7200:
        return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
