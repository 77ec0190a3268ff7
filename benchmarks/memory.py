"""Peak memory of a model too large for many machines, from models of the same width with few layers.

python -m benchmarks.memory --size 7b --layers 3 5      extrapolates to all layers
python -m benchmarks.memory --size 7b                   the whole model (7B in bfloat16: about 17 GB)

Every number of layers runs in a process of its own, since the peak of a process never goes down.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from refusal_lens.attribution.components import heads as head_contributions
from refusal_lens.direction.extract import extract_directions
from refusal_lens.direction.select import SelectionRule, select_direction
from refusal_lens.refusal.records import RefusalTokens

from .models import SIZES, random_model


def peak_gb() -> float:
    """Highest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # Linux counts in KB


def analyse(size: str, layers: int) -> dict[str, Any]:
    """Load, extract, select a little, attribute; the peak after each."""
    peaks = {"libraries": peak_gb()}
    model = random_model(size, layers=layers)
    weights = sum({p.data_ptr(): p.numel() * p.element_size() for p in model.tl.parameters()}.values()) / 1e9
    peaks["load"] = peak_gb()
    requests = [f"Write about the number {i}" for i in range(8)]
    candidates = extract_directions(model, requests[:4], requests[4:])
    peaks["extraction"] = peak_gb()
    rule = SelectionRule(max_kl=1e9, min_induce=-1e9)
    selection = select_direction(
        model, candidates, requests[:2], requests[4:6], refusal_tokens=RefusalTokens((5,), ("?",)), rule=rule
    )
    peaks["selection"] = peak_gb()
    head_contributions(model, requests[:4], selection.chosen)
    peaks["head contributions"] = peak_gb()
    return {"layers": layers, "weights_gb": weights, "peak_gb": peaks}


def main() -> None:
    """Measure, extrapolate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="7b", choices=sorted(SIZES))
    parser.add_argument("--layers", type=int, nargs="*", default=[])
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    if args.child:
        print(json.dumps(analyse(args.size, args.child)))
        return
    whole = SIZES[args.size][1]
    measured = []
    for layers in args.layers or [whole]:
        command = [sys.executable, "-m", "benchmarks.memory", "--size", args.size, "--child", str(layers)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        measured.append(json.loads(done.stdout.splitlines()[-1]))
        print(measured[-1], flush=True)
    result: dict[str, Any] = {"size": args.size, "dtype": "bfloat16", "measured": measured, "torch": torch.__version__}
    if len(measured) > 1:
        first, last = measured[0], measured[-1]
        steps = last["layers"] - first["layers"]
        result["extrapolated_gb"] = {
            stage: last["peak_gb"][stage] + (whole - last["layers"]) * (last["peak_gb"][stage] - gb) / steps
            for stage, gb in first["peak_gb"].items()
        }
        print(f"all {whole} layers, extrapolated: {result['extrapolated_gb']}")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"memory-{args.size}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
