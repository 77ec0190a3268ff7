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
from refusal_lens.data.prompts import PromptPair, Prompts, PromptSet
from refusal_lens.direction.cone_loss import ConeLoss, OwnWords
from refusal_lens.direction.dose import Scope, dose_response
from refusal_lens.direction.extract import extract_directions, mean_activations
from refusal_lens.direction.records import FoundDirection
from refusal_lens.direction.select import SelectionRule, select_direction
from refusal_lens.hijacking.controls import random_controls
from refusal_lens.hijacking.grids import patching_grid
from refusal_lens.hijacking.screening import screen
from refusal_lens.hijacking.shifts import attention_shift
from refusal_lens.models.texts import reply_tokens
from refusal_lens.progress import silent
from refusal_lens.records.direction import Direction
from refusal_lens.refusal.metric import refusal_metric
from refusal_lens.refusal.records import RefusalTokens

from .measure import machine, measure
from .models import random_model

TURNS = 4  # the works take turns, since the speed of a shared machine drifts
TOKENS = RefusalTokens((5,), ("?",))
SUFFIX = " now and then"


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


def grid(model: HookedChatModel, texts: list[str]) -> Callable[[], Any]:
    """Every cell of a patching grid."""
    drawn, how = _drawn(model, texts), {"n_placebo": 0, "progress": silent}
    return lambda: patching_grid(model, texts, SUFFIX, drawn, _direction(model), TOKENS, **how)  # type: ignore[arg-type]


def split(model: HookedChatModel, texts: list[str]) -> Callable[[], Any]:
    """Why every head's attention moves, and what wrote one head's scores."""
    drawn = _drawn(model, texts)
    return lambda: attention_shift(model, texts, SUFFIX, drawn, receivers=[(1, 0)], plain=False)


def dose(model: HookedChatModel, texts: list[str]) -> Callable[[], Any]:
    """Metric, KL and loss at two strengths."""
    kinds = texts, [f"Tell me {text}" for text in texts]
    candidates = extract_directions(model, *kinds)
    rule = SelectionRule(max_kl=math.inf, min_induce=-math.inf, layer_cutoff=1.0)
    some = [kind[:2] for kind in kinds]
    found = FoundDirection(
        select_direction(model, candidates, *some, refusal_tokens=TOKENS, rule=rule), candidates, TOKENS
    )
    names = ("harmful", "harmless")
    data = PromptPair(*(PromptSet(n, *[Prompts(tuple(kind))] * 3) for n, kind in zip(names, kinds, strict=True)))
    how: Any = {"scopes": {"all": Scope()}, "replies_at": (), "max_new_tokens": 4}
    return lambda: dose_response(model, data, found, strengths={"ablation": [0.5, 1.0]}, **how)


def cone(model: HookedChatModel, texts: list[str]) -> Callable[[], Any]:
    """A step of learning a direction: its loss and gradient."""
    own = tuple(reply_tokens(model, texts, ["about the same words"] * len(texts)))
    ends = tuple(text.ids[text.first :] for text in own)
    direction = _direction(model)
    loss = ConeLoss(model, direction, None, (1.0, 1.0, 1.0, 0.0), ends, ends)
    rows = range(len(texts))
    batch = loss.batch(OwnWords(own, own, ends, ends), rows, rows, torch.Generator().manual_seed(0))

    def step() -> Any:
        r = direction.unit.double().requires_grad_(True)
        return torch.autograd.grad(loss.total(loss.parts(r, batch)), r)

    return step


def _direction(model: HookedChatModel) -> Direction:
    return Direction(torch.eye(model.d_model)[0], 1.0, -1, 1)


def _drawn(model: HookedChatModel, texts: list[str]) -> list[str]:
    return list(random_controls(model.chat, texts, SUFFIX).texts)


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

    looks = {
        "forward": lambda *given: lambda: forward(*given),
        "grid": grid,
        "split": split,
        "dose": dose,
        "cone": cone,
    }

    def looking(setup: Callable[[int], tuple[HookedChatModel, list[str]]]) -> dict[str, Any]:
        # Random tokens, directions and replies are prepared outside the clock.
        return {name: (lambda value, look=look: look(*setup(value))) for name, look in looks.items()}

    small = make(layers=3, width=128)
    suffixes = [f" {1000 + i} now" for i in range(1024)]
    return {
        "prompts": ([64, 128, 256, 512], vary(lambda n: (base, prompts(n)))),
        "layers": ([2, 4, 8, 16], vary(lambda n: (make(layers=n), prompts(64)))),
        "width": ([256, 512, 1024, 2048], vary(lambda n: (make(layers=2, width=n), prompts(64)))),
        "context": ([32, 128, 512, 1024], vary(lambda n: (base, prompts(16, words=n)))),
        "prompts of a look": ([8, 16, 32, 64], looking(lambda n: (small, prompts(n)))),
        "layers of a look": ([2, 4, 8], looking(lambda n: (make(layers=n, width=128), prompts(8)))),
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
    parser.add_argument("--only", nargs="+", help="some of the quantities")
    args = parser.parse_args()
    out = args.out
    result: dict[str, Any] = {
        "machine": machine(),
        "clock": f"processor seconds, best of {TURNS} in turns",
        "curves": {},
    }
    for quantity, (values, works) in curves().items():
        if args.only and quantity not in args.only:
            continue
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
    colours = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#000000")
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
            colour = colours[k % 5]
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
