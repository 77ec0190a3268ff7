"""Every analysis of behaviour in one go, its numbers on one page of Markdown (docs/results/ holds two such pages).

    python -m analyses.results [MODEL] [--skip NAME ...] [--page FILE] [--out DIR] [what the scripts take]

An analysis that is done (same model and arguments) is not run again.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
import time
from pathlib import Path

from refusal_lens.records.files import write_atomically

NAMES = (
    "fig1_ablation",
    "fig3_addition",
    "subtraction",
    "ce_loss",
    "refusal_metric",
    "system_prompts",
    "cross_behaviour",
    "transfer",
    "base_vs_chat",
    "selection_grid",
    "cones",
    "subspace",
    "stability",
    "fine_tuning",
)


def section(name: str, model: str, given: list[str], out: Path) -> str:
    """Run one analysis (or read what it said before) and give its part of the page."""
    source = (Path(__file__).parent / f"{name}.py").read_text("utf-8")
    title = (ast.get_docstring(ast.parse(source)) or name).splitlines()[0]
    arguments = [*given, "--study", str(out / "study"), "--out", str(out / name)]
    done = out / name / "result.json"
    known = json.loads(done.read_text("utf-8")) if done.is_file() else {}
    if known.get("command") != [name, model, *given]:
        start = time.perf_counter()
        command = [sys.executable, "-m", f"analyses.{name}", model, *arguments]
        found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if found.returncode:
            raise SystemExit(f"analyses.{name} ended with {found.returncode}; run the same command to go on from there")
        minutes = (time.perf_counter() - start) / 60
        text = "\n".join(line for line in found.stdout.splitlines() if not line.startswith("page: "))
        known = {"command": [name, model, *given], "minutes": minutes, "text": text}
        write_atomically(done, json.dumps(known).encode())
    print(f"{name}: {known['minutes']:.1f} minutes", flush=True)
    return f"## {title}\n\n`{name}`, {known['minutes']:.1f} minutes\n\n```\n{known['text']}\n```\n"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="python -m analyses.results")
    arguments.add_argument("model", nargs="?", default="organism", help="hub id, folder, .gguf file or 'organism'")
    arguments.add_argument("--skip", action="append", default=[], choices=NAMES, help="leave one out")
    arguments.add_argument("--page", type=Path, help="Markdown file (default: results.md in OUT)")
    arguments.add_argument("--out", type=Path, default=Path("runs") / "analyses" / "results", help="output folder")
    args, given = arguments.parse_known_args()
    name = Path(args.model).name
    shown = " ".join(["python -m analyses.results", name, *(f"--skip {s}" for s in args.skip), *map(_short, given)])
    parts = [f"# {name}\n\n```bash\n{shown}\n```\n"]
    for script in (name for name in NAMES if name not in args.skip):
        parts.append(section(script, args.model, given, args.out))
        # After each, so that a page of what is done exists at any time.
        write_atomically(args.page or args.out / "results.md", "\n".join(parts).encode())


def _short(argument: str) -> str:
    return Path(argument).name if "/" in argument else argument


if __name__ == "__main__":
    main()
