"""Where a suffix acts, cell by cell, and along which paths: results of ``patching_grid`` and ``path_effects``."""

from dataclasses import dataclass

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from ..records.base import Record
from ..records.labels import index_of
from ..stats import Interval, columns, correlation, fraction_interval, mean_interval

SITES = ("resid_pre", "attn_out", "mlp_out", "z")
WAYS = ("into suffixed", "into clean")  # whose run goes on with activations of the other one
VALUES = ("metric", "r̂ᵀx")
FIGURES = "refusal_lens.hijacking.grid_figures"


@dataclass(frozen=True)
class PatchingGrid(Record, axes={"value": VALUES, "place": "places"}, figures=FIGURES):
    """The effect of each cell of one run, put into the other run of the same prompts.

    Values are the refusal metric, and r̂ᵀx at the direction's own layer and the last position. An effect is the value
    with the cell patched minus the value of the run into which it was put.

    Attributes:
        site: one of ``SITES``; of z a place is a head, at all aligned positions together.
        way: "into suffixed" (what brings refusal back) or "into clean" (what takes it away).
        clean: "random" tokens of equal length, or "plain".
        places: positions, counted from the end, with their tokens after the first prompt; or heads.
        effects: of exact patches; NaN where a cell was not patched.
        estimate: the same by gradient, to first order; None where the model gives none.
        into, source: values of both runs as they are.
        top: cells (layer, place) with the largest exact effects on the metric, on the first ``n_chosen`` prompts.
        placebo: effects at these cells of changes in a random direction, of equal norm at every position.
        causality: largest change between both runs at the instruction's last token, relative to the activation's norm;
            0 but for rounding.
        layer: of the direction.
        seconds, passes: of all exact patches and placebos.
        forecast: the estimate that was given before.
        notes: what could not be measured, in words.
    """

    site: str
    way: str
    clean: str
    places: tuple[str, ...]
    effects: Float[Tensor, "value layer place prompt"]
    estimate: Float[Tensor, "value layer place prompt"] | None
    into: Float[Tensor, "value prompt"]
    source: Float[Tensor, "value prompt"]
    top: tuple[tuple[int, int], ...]
    placebo: Float[Tensor, "value top prompt"]
    n_chosen: int
    causality: float
    layer: int
    seconds: float
    passes: int
    forecast: str
    notes: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        """Number of prompts."""
        return self.into.shape[-1]

    @property
    def measured(self) -> list[tuple[int, int]]:
        """Cells (layer, place) that were patched exactly."""
        return [(cell[0], cell[1]) for cell in (~self.effects[0].isnan().all(-1)).nonzero().tolist()]

    def label(self, layer: int, place: int) -> str:
        """A cell in words."""
        return f"L{layer}{self.places[place]}" if self.site == "z" else f"layer {layer} at {self.places[place]}"

    def share(self, layer: int, place: int, value: str = "metric", effects: Tensor | None = None) -> Interval:
        """The part of the difference between both runs that one cell makes, on the prompts that did not choose cells.

        Args:
            effects: of the cell, others than the exact ones.

        Raises:
            LabelError: no such value.
        """
        i = index_of(VALUES, value, "value", "PatchingGrid")
        part = self.effects[i, layer, place] if effects is None else effects[i]
        whole = self.source[i] - self.into[i]
        return fraction_interval(part[self.n_chosen :].tolist(), whole[self.n_chosen :].tolist())

    def agreement(self, value: str = "metric") -> float:
        """Spearman's correlation of gradient and exact patches over the cells (means over prompts); NaN without."""
        i = index_of(VALUES, value, "value", "PatchingGrid")
        if self.estimate is None:
            return float("nan")
        means = [grid[i].mean(-1) for grid in (self.estimate, self.effects)]
        estimated, exact = ([float(x[cell]) for cell in self.measured] for x in means)
        return correlation(estimated, exact)[0]

    def to_frame(self) -> pd.DataFrame:
        """One row per cell that was patched: effects with intervals, the gradient's estimate, n."""
        rows = []
        for layer, place in self.measured:
            row: dict[str, object] = {"layer": layer, "place": self.places[place]}
            for i, name in enumerate(VALUES):
                row |= columns(mean_interval(self.effects[i, layer, place].tolist()), name, f"{name} ")
                if self.estimate is not None:
                    row[f"{name} by gradient"] = float(self.estimate[i, layer, place].mean())
            rows.append(row | {"n": self.n})
        return pd.DataFrame(rows)

    def largest(self) -> pd.DataFrame:
        """The cells of ``top`` on the other prompts: share of both values with intervals, placebo's share, n."""
        rows = []
        for k, (layer, place) in enumerate(self.top):
            row: dict[str, object] = {"cell": self.label(layer, place)}
            for name in VALUES:
                placebo = self.share(layer, place, name, self.placebo[:, k])
                row |= columns(self.share(layer, place, name), name, f"{name} ")
                row |= columns(placebo, f"{name}, placebo", f"{name}, placebo ")
            rows.append(row | {"n": self.n - self.n_chosen})
        return pd.DataFrame(rows)

    def sentence(self) -> str:
        """The largest cell, its placebo, and how far the gradient agrees."""
        other = "suffixed" if self.way == "into clean" else self.clean
        said = f"{self.site} of the {other} run, {self.way.replace('clean', self.clean)}"
        if not self.top:
            return f"{said}: no cell was patched."
        cell, rho = self.top[0], self.agreement()
        parts = (self.share(*cell), self.share(*cell, effects=self.placebo[:, 0]))
        own, placebo = (f"{x.mean:.0%} [{x.low:.0%}, {x.high:.0%}]" for x in parts)
        said += f": the largest cell, {self.label(*cell)}, makes {own} of the metric's difference (a random change of "
        n = self.n_chosen
        chosen = f"{n} prompts, shown on {self.n - n} others" if n else "this prompt"
        said += f"equal norm {placebo}; chosen on {chosen})"
        return said + ("." if rho != rho else f"; gradient and exact patches rank the cells alike at {rho:.2f}.")


EFFECTS = ("attention", *VALUES)


@dataclass(frozen=True)
class PathEffects(Record, axes={"effect": EFFECTS, "path": "paths"}, figures=FIGURES):
    """What one sender changes through one receiver's query, keys or values, everything else as in the run itself.

    Effects are of the path alone: the receiver's attention to the suffix from the last position, the refusal metric,
    and r̂ᵀx at the direction's layer and the last position (NaN for receivers at or above that layer).

    Attributes:
        paths: as "L5H3 -> query of L14H7".
        way: "into suffixed" (the sender's write is the random run's) or "into clean" (the suffixed run's).
        effects: with the path, minus the run as it is.
        random: the same of other senders, path by path: random heads of the sender's layer; of an MLP or the embedding,
            changes in random directions that are as large.
        whole: the difference of both runs.
        notes: paths that were left out, in words.
    """

    paths: tuple[str, ...]
    way: str
    effects: Float[Tensor, "effect path prompt"]
    random: Float[Tensor, "effect path draw prompt"]
    whole: Float[Tensor, "effect path prompt"]
    notes: tuple[str, ...] = ()

    def share(self, path: str, effect: str = "attention", random: bool = False, start: int = 0) -> Interval:
        """The part of the difference between both runs that goes along one path, or along random senders' paths.

        Args:
            start: the first prompt that counts.

        Raises:
            LabelError: no such path or effect.
        """
        place = index_of(EFFECTS, effect, "effect", "PathEffects"), index_of(self.paths, path, "path", "PathEffects")
        part = self.random[place].nanmean(0) if random else self.effects[place]
        return fraction_interval(part[start:].tolist(), self.whole[place][start:].tolist())

    def to_frame(self) -> pd.DataFrame:
        """One row per path and effect: the change, its share of the difference with interval, random senders, n."""
        rows = []
        for i, effect in enumerate(EFFECTS):
            for j, path in enumerate(self.paths):
                row = {"path": path, "effect": effect, "change": float(self.effects[i, j].mean())}
                row |= columns(self.share(path, effect), "share")
                row |= columns(self.share(path, effect, random=True), "random", "random ")
                rows.append(row | {"n": self.effects.shape[-1]})
        return pd.DataFrame(rows)

    def sentence(self) -> str:
        """The first path's share of attention and metric, and the path with the largest share of the metric (on the
        first half of the prompts; the share is that on the others), beside random senders."""
        if not self.paths:
            return "No path was measured."
        i, half = EFFECTS.index("metric"), self.effects.shape[-1] // 2
        share = self.effects[i, :, : half or 1].mean(-1) / self.whole[i, :, : half or 1].mean(-1)
        first, best = self.paths[0], self.paths[int(share.argmax())]
        said = f"Direct paths {self.way.replace('clean', 'random')}: {first} makes {self._said(first, 'attention')} of "
        said += f"the difference in its attention to the suffix, and {self._said(first, 'metric')} of the metric's. "
        most = self._said(best, "metric", half)
        return f"{said}Of {len(self.paths)} paths {best} makes most of the metric's: {most}."

    def _said(self, path: str, effect: str, start: int = 0) -> str:
        own, other = (self.share(path, effect, random, start) for random in (False, True))
        return f"{own.mean:.0%} [{own.low:.0%}, {own.high:.0%}] (random senders {other.mean:.0%})"
