"""How wall time grows with prompts, suffixes, layers, width and context: measured, fitted, plotted.

python -m benchmarks.growth [--out benchmarks/results]

Each quantity is varied alone on small random models. The exponent is that of a straight line through the logarithms;
beside it stands the exponent of the model's own forward over the same tokens.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch

from refusal_lens import Ablate, HookedChatModel
from refusal_lens.engines import LocalEngine
from refusal_lens.extraction import mean_activations
from refusal_lens.records import Direction, RefusalTokens
from refusal_lens.scoring import refusal_metric
from refusal_lens.sharding import sharded_screen

from .measure import machine, measure
from .models import random_model

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
            {"suffix batch": lambda n: lambda: sharded_screen(LocalEngine(base), prompts(2), suffixes[:n], TOKENS)},
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
    result: dict[str, Any] = {"machine": machine(), "clock": "processor seconds, best of 2", "curves": {}}
    for quantity, (values, works) in curves().items():
        for name, work in works.items():
            seconds = []
            for value in values:
                run = work(value)
                run()
                seconds.append(min(measure(run).cpu for _ in range(2)))
            fit = exponent(values, seconds)
            result["curves"][f"{name} / {quantity}"] = {"x": values, "seconds": seconds, "exponent": fit}
            print(
                f"{name} against {quantity}: exponent {fit:.2f}, " + ", ".join(f"{s:.3g}" for s in seconds), flush=True
            )
    out.mkdir(parents=True, exist_ok=True)
    (out / "growth.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(result).write_html(out / "growth.html", include_plotlyjs="cdn")
    print(f"written to {out / 'growth.json'} and growth.html")


def plot(result: dict[str, Any]) -> go.Figure:
    """Seconds against each quantity relative to its smallest value, with the fitted lines."""
    figure = go.Figure()
    for name, curve in result["curves"].items():
        x = [v / curve["x"][0] for v in curve["x"]]
        figure.add_scatter(
            x=x, y=curve["seconds"], mode="markers", name=f"{name} ({curve['exponent']:.2f})", legendgroup=name
        )
        last = math.log(curve["seconds"][-1])
        line = [math.exp(last + curve["exponent"] * math.log(v / x[-1])) for v in x]
        figure.add_scatter(x=x, y=line, mode="lines", showlegend=False, legendgroup=name, hoverinfo="skip")
    figure.update_xaxes(type="log", title_text="multiple of the smallest value")
    figure.update_yaxes(type="log", title_text="processor seconds")
    return figure


if __name__ == "__main__":
    main()
