"""Train, search suffixes, measure, for several seeds: `python -m training.organism.sweep --recipe R --seeds 0 1 2 3 4`.

One folder per recipe and seed under `--out`; what is there already is not done again. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from training.organism.criteria import CRITERIA, check


def one(recipe: str, seed: int, out: Path) -> dict:
    """Train, search and measure one seed, each in its own process."""
    folder = out / f"{recipe}-{seed}"
    suffixes, result = folder.with_suffix(".suffixes.jsonl"), folder.with_suffix(".json")
    steps = [
        (folder / "tokenizer.json", ["train", "--recipe", recipe, "--seed", str(seed), "--out", str(folder)]),
        (suffixes, ["search_suffix", str(folder), "--seed", str(seed), "--out", str(suffixes)]),
        (result, ["measure", str(folder), "--suffixes", str(suffixes), "--out", str(result)]),
    ]
    for made, (module, *args) in steps:
        if not made.exists():
            subprocess.run([sys.executable, "-m", f"training.organism.{module}", *args], check=True)
    return json.loads(result.read_text())


def table(results: dict[str, dict]) -> str:
    """Criteria by row, runs by column; a number that does not hold is in bold."""
    columns = {name: {row.name: row for row in check(result)} for name, result in results.items()}
    lines = ["| criterion | bound | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    for c in CRITERIA:
        cells = []
        for rows in columns.values():
            row = rows[c.name]
            text = f"{row.value:.0f}" if abs(row.value) >= 20 else f"{row.value:.3f}".rstrip("0").rstrip(".")
            cells.append(text if row.passed else f"**{text}**")
        sign = ">=" if c.side == "at least" else "<="
        lines.append(f"| {c.name} | {sign} {c.bound:g} | " + " | ".join(cells) + " |")
    passed = [str(sum(r.passed for r in rows.values())) + f"/{len(rows)}" for rows in columns.values()]
    lines.append("| passed | | " + " | ".join(passed) + " |")
    for key in REPORTED:
        cells = []
        for result in results.values():
            value = result.get(key)
            cells.append(f"{value:.3f}" if isinstance(value, float) else str(value))
        lines.append(f"| {key} (no bound) | | " + " | ".join(cells) + " |")
    return "\n".join(lines)


REPORTED = ("pos", "layer", "norm", "bypass", "harmful_complied_on_topic_ablation", "harmless_on_topic_ablation")
"""Numbers without a bound that the table shows too."""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", nargs="+", default=["forms"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("/tmp/organism-sweep"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    results = {f"{recipe} {seed}": one(recipe, seed, args.out) for recipe in args.recipe for seed in args.seeds}
    full = sum(all(r.passed for r in check(result)) for result in results.values())
    print(table(results))
    print(f"\n{full} of {len(results)} pass every criterion.")


if __name__ == "__main__":
    main()
