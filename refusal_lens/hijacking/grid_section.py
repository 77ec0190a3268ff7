"""Report items of patching grids and paths."""

from collections.abc import Iterator, Sequence

from ..report.claims import percent
from ..report.page import Figure, Item, Section, Table
from ..stats import Interval
from .curve_records import HeadCurves, PathCurves
from .grid_records import PatchingGrid, PathEffects


def grid_items(
    grids: Sequence[PatchingGrid], paths: PathEffects | None, name: str, curves: PathCurves | None = None
) -> Iterator[Item]:
    """Each grid with its largest cells, then the paths, one by one and many at once."""
    for i, grid in enumerate(grids):
        exact = f"{len(grid.measured)} cells patched exactly, {grid.passes} passes in {grid.seconds:.0f} s"
        caption = (
            f"{grid.sentence()} Share of the two runs' difference that each cell accounts for, in the refusal "
            f"metric and in r̂ᵀx at layer {grid.layer} and the last position; {exact}. Below: to first order, by the "
            f"gradient. At the instruction's last token the two runs differ by {grid.causality:.1g} of the norm. "
            f"{' '.join(grid.notes)}"
        )
        control = "changes of equal norm in random directions, in the table"
        yield Figure.of(f"{name}-grid-{i}", grid, caption, f"{grid.n} prompts", control)
        frame = grid.largest()
        rows = tuple(
            # cell, then value, low and high of metric, its placebo, r̂ᵀx and its placebo, then n
            (row[0], *(percent(Interval(row[k], row[k + 1], row[k + 2], 0)) for k in range(1, 13, 3)))
            for row in frame.itertuples(index=False)
        )
        caption = (
            f"The cells with the largest effects on the metric, chosen on the first {grid.n_chosen} prompts; shares on "
            f"the other {grid.n - grid.n_chosen}, 95% bootstrap intervals."
        )
        columns = ("cell", "share of the metric", "placebo", "share of r̂ᵀx", "placebo ")
        yield Table(f"{name}-cells-{i}", columns, rows, caption, data=frame)
    if paths is not None and paths.paths:
        caption = (
            f"{paths.sentence()} The sender's write from the other run reaches one receiver's query, keys or values; "
            "all else is frozen up to there, the norm before it is recomputed, and the later layers run on. Bars: 95% "
            f"bootstrap intervals. {' '.join(paths.notes)}"
        )
        control = "random heads of the sender's layer; for MLPs and the embedding, random changes of equal norm"
        yield Figure.of(f"{name}-paths", paths, caption, f"{paths.effects.shape[-1]} prompts", control)
    if curves is not None and curves.paths:
        caption = (
            f"{curves.sentence()} Left: the suffixed run, where the first compositions carry what their senders write "
            "in the random run (necessity); right: the random run, where they carry what these write in the suffixed "
            "run (sufficiency); keys and values go together. Below: the share of prompts whose metric counts as "
            "refused. Areas: the mean height over the counts after none. Bars: 95% intervals. "
            f"{' '.join(curves.notes)}"
        )
        control = "the same receivers with other heads of the senders' layers, or random changes of equal norm"
        n = f"{len(curves.suffixed)} prompts; compositions from others"
        yield Figure.of(f"{name}-path-curves", curves, caption, n, control)


def grid_section(
    grids: Sequence[PatchingGrid],
    paths: PathEffects | None = None,
    curves: HeadCurves | None = None,
    suffix: str = "",
    together: PathCurves | None = None,
) -> Section:
    """Where one suffix acts, along which paths, and what stays with frozen attention."""
    text = [f"The suffix {suffix!r}."] if suffix else []
    text += [grid.sentence() for grid in grids] + ([] if paths is None else [paths.sentence()])
    if curves is not None:
        stays = (f"{percent(curves.stays(run))} as in the {run} run" for run in ("random", "plain"))
        text.append(f"Share of the suffix's effect that stays with every head's attention held: {', '.join(stays)}.")
    return Section("grids", "Where a suffix acts", tuple(text), tuple(grid_items(grids, paths, "suffix", together)))
