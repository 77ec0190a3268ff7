"""How wall time grows with prompts, suffixes, layers, width and context: measured, fitted, plotted.

python -m benchmarks.growth [--out benchmarks/results]

Each quantity is varied alone on small random models. The exponent is that of a straight line through the logarithms;
beside it stands the exponent of the model's own forward over the same tokens, measured in turns with it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from refusal_lens import Ablate, HookedChatModel
from refusal_lens.direction.extract import mean_activations
from refusal_lens.hijacking.screening import screen
from refusal_lens.records.direction import Direction
from refusal_lens.refusal.metric import refusal_metric
from refusal_lens.refusal.records import RefusalTokens

from .measure import machine, measure
from .models import random_model

TURNS = 4  # the works take turns, since the speed of a shared machine drifts
TOKENS = RefusalTokens((5,), ("?",))


def prompts(n: int, words: int = 8) -> list[str]:
    """Different requests of about as many tokens."""
    return [f"{1000 + i} " + "about the same words " * (words // 4) for i in range(n)]


def ablated_metric(model: HookedChatModel, texts: list[str]) -> Any:
    """What bypass costs for one candidate."""
    direction = Direction(torch.eye(model.d_model)[0], 1.0, -1, 1)
    with model.hooks(Ablate(direction)):
        return refusal_metric(model, texts, TOKENS)


def forward(model: HookedChatModel, texts: list[str]) -> None:
    """The model's own forward of the same prompts, without hooks."""
    for batch in model.batches(texts):
        model.logits(batch)


def make(layers: int = 4, width: int = 256) -> HookedChatModel:
    """A small random model."""
    return random_model("0.5b", layers=layers, width=width, dtype=torch.float32, vocab=2048)


def curves() -> dict[str, tuple[list[int], dict[str, Callable[[int], Callable[[], Any]]]]]:
    """Quantity -> (values, name of the work -> value -> what to time)."""
    base = make()
    stages = {"forward": forward, "extraction": mean_activations, "metric under ablation": ablated_metric}

    def vary(setup: Callable[[int], tuple[HookedChatModel, list[str]]]) -> dict[str, Any]:
        # Model and prompts are made outside the clock.
        def at(work: Callable[..., Any], value: int) -> Callable[[], Any]:
            arguments = setup(value)
            return lambda: work(*arguments)

        return {name: (lambda value, work=work: at(work, value)) for name, work in stages.items()}

    suffixes = [f" {1000 + i} now" for i in range(1024)]
    return {
        "prompts": ([64, 128, 256, 512], vary(lambda n: (base, prompts(n)))),
        "layers": ([2, 4, 8, 16], vary(lambda n: (make(layers=n), prompts(64)))),
        "width": ([256, 512, 1024, 2048], vary(lambda n: (make(layers=2, width=n), prompts(64)))),
        "context": ([32, 128, 512, 1024], vary(lambda n: (base, prompts(16, words=n)))),
        "suffixes": (
            [128, 256, 512, 1024],
            {"suffix batch": lambda n: lambda: screen(base, prompts(2), suffixes[:n], TOKENS)},
        ),
    }


def exponent(x: list[int], seconds: list[float]) -> float:
    """Slope of log seconds over log x, by least squares on the upper half (overhead rules the lower one)."""
    half = slice(len(x) // 2 - 1, None)
    return float(np.polyfit(np.log(x[half]), np.log(seconds[half]), 1)[0])


def main() -> None:
    """Measure, fit, plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    out = parser.parse_args().out
    result: dict[str, Any] = {
        "machine": machine(),
        "clock": f"processor seconds, best of {TURNS} in turns",
        "curves": {},
    }
    for quantity, (values, works) in curves().items():
        best = {name: [math.inf] * len(values) for name in works}
        runs = {name: [work(value) for value in values] for name, work in works.items()}
        for turn, k, name in product(range(TURNS + 1), range(len(values)), works):
            once = measure(runs[name][k]).cpu
            if turn:  # the first one warms up
                best[name][k] = min(best[name][k], once)
        for name, seconds in best.items():
            fit = exponent(values, seconds)
            result["curves"][f"{name} / {quantity}"] = {"x": values, "seconds": seconds, "exponent": fit}
            print(
                f"{name} against {quantity}: exponent {fit:.2f}, " + ", ".join(f"{s:.3g}" for s in seconds), flush=True
            )
    out.mkdir(parents=True, exist_ok=True)
    (out / "growth.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "growth.svg").write_text(svg(result["curves"]))
    print(f"written to {out / 'growth.json'} and growth.svg")


def svg(curves: dict[str, Any]) -> str:
    """Points and fitted lines on logarithmic axes, a panel for each quantity."""
    quantities = list(dict.fromkeys(name.split(" / ")[1] for name in curves))
    colours = ("#0072B2", "#E69F00", "#009E73")
    width, height, left = 230, 230, 50
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + len(quantities) * width} {height + 70}" ']
    parts.append('font-family="sans-serif" font-size="11" style="background:white">')
    seconds = [s for curve in curves.values() for s in curve["seconds"]]
    low, high = math.log10(min(seconds)), math.log10(max(seconds))
    for panel, quantity in enumerate(quantities):
        mine = {name.split(" / ")[0]: c for name, c in curves.items() if name.endswith(f"/ {quantity}")}
        values = next(iter(mine.values()))["x"]
        x0 = left + panel * width
        first, last = math.log10(values[0]), math.log10(values[-1])

        def across(v: float, x0: int = x0, first: float = first, last: float = last) -> float:
            return x0 + 15 + (width - 45) * (math.log10(v) - first) / (last - first)

        def up(s: float) -> float:
            return 20 + (height - 30) * (high - math.log10(s)) / (high - low)

        parts.append(f'<rect x="{x0}" y="10" width="{width - 15}" height="{height}" fill="none" stroke="#999"/>')
        parts.append(f'<text x="{x0 + width / 2 - 8}" y="{height + 40}" text-anchor="middle">{quantity}</text>')
        parts += [f'<text x="{across(v):.0f}" y="{height + 24}" text-anchor="middle">{v}</text>' for v in values]
        for k, (name, curve) in enumerate(mine.items()):
            colour = colours[k % 3]
            points = list(zip(curve["x"], curve["seconds"], strict=True))
            parts += [f'<circle cx="{across(x):.1f}" cy="{up(s):.1f}" r="3" fill="{colour}"/>' for x, s in points]
            ends = [points[-1][1] * (v / values[-1]) ** curve["exponent"] for v in (values[0], values[-1])]
            ends = [min(max(s, 10**low), 10**high) for s in ends]
            parts.append(
                f'<line x1="{across(values[0]):.1f}" y1="{up(ends[0]):.1f}" x2="{across(values[-1]):.1f}" '
                f'y2="{up(ends[1]):.1f}" stroke="{colour}" stroke-opacity="0.6"/>'
            )
            parts.append(f'<text x="{x0 + 8}" y="{24 + 13 * k}" fill="{colour}">{name}: {curve["exponent"]:.2f}</text>')
    for power in range(math.ceil(low), math.floor(high) + 1):
        parts.append(f'<text x="{left - 4}" y="{up(10.0**power) + 4:.0f}" text-anchor="end">{10.0**power:g} s</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
