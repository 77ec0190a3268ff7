"""Beyond Fig. 6: where a suffix acts (layer x position, or layer x head), and along which paths of heads.

The strongest suffix of the file: cells of the run with random tokens put into the suffixed run and back, the direct
paths that carry the change of attention, and what stays with attention held as in the random run.

    python -m analyses.suffix_grids [MODEL] [--suffixes FILE] [--site resid_pre z] [--limit-seconds 900] [--out DIR]
"""

from __future__ import annotations

from typing import Any

from analyses.common import finish, parser, prepared, show
from analyses.suffix_common import investigated, with_suffixes
from refusal_lens.hijacking.grid_records import SITES, WAYS, PatchingGrid
from refusal_lens.hijacking.grid_section import grid_section
from refusal_lens.hijacking.grids import patching_grid
from refusal_lens.hijacking.paths import path_effects
from refusal_lens.progress import as_events
from refusal_lens.records.base import Record


def told(event: dict[str, Any]) -> None:
    """The estimate before a grid starts, and its progress."""
    if event["event"] in ("stage", "progress"):
        print(event["stage"], f"{event['done']} done" if "done" in event else "", flush=True)


def main() -> None:
    own = with_suffixes(parser(__doc__, "suffix_grids"))
    own.add_argument("--site", nargs="+", default=["resid_pre", "z"], choices=SITES, help="what is patched")
    own.add_argument("--plain", action="store_true", help="patch from the prompts alone, whose template is aligned")
    own.add_argument("--exact", type=int, help="patch so many cells, those with the largest gradients")
    own.add_argument("--grid-prompts", type=int, default=16, help="prompts of a grid")
    own.add_argument("--limit-seconds", type=float, help="refuse a grid that would take longer")
    args = own.parse_args()
    model, study = prepared(args)
    report = investigated(args, model, study)
    result = report.strongest
    if result is None:
        raise SystemExit("no suffix was investigated")
    prompts, text = report.plain.prompts[: args.grid_prompts], result.suffix.text
    random = result.random.suffixes[: args.grid_prompts]
    inputs = (study.selection.chosen, study.refusal_tokens)
    clean = None if args.plain else random
    options = {"exact": args.exact, "limit": args.limit_seconds, "seed": args.seed, "progress": as_events(told)}
    grids: dict[str, PatchingGrid] = {}
    for site in args.site:
        for way in WAYS:
            name = f"{site}_{way.replace(' ', '_')}"
            options |= {"site": site, "way": way, "folder": args.out / "items" / name}
            grid = grids[name] = patching_grid(model, prompts, text, clean, *inputs, **options)
            print(f"{grid.seconds:.1f} s. {grid.sentence()}")
            show(grid.largest())
    records: dict[str, Record] = {**grids}
    paths = None
    if result.shift is not None:
        for way in WAYS:
            options = {"way": way, "seed": args.seed}
            paths = path_effects(model, prompts, text, random, *inputs, result.shift, **options)
            records[f"paths_{way.replace(' ', '_')}"] = paths
            print(paths.sentence())
            show(paths.to_frame())
    if result.path_curves is not None:
        records["path_curves"] = result.path_curves
        print(result.path_curves.sentence())
        show(result.path_curves.to_frame())
    if result.curves is not None:
        for run in ("random", "plain"):
            print(f"stays with attention held as in the {run} run: {result.curves.stays(run)}")
    section = grid_section(tuple(grids.values()), paths, result.curves, text.strip(), result.path_curves)
    finish(args, "Where a suffix acts", [section], **records)


if __name__ == "__main__":
    main()
