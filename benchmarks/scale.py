"""Cost and memory of larger models on paper: counted work over the measured rate of the small ones.

python -m benchmarks.scale benchmarks/results/real-*.json [--gflops 500000]

Work is counted in multiplications with weights (two operations a parameter and token). The rate is the GEMM peak in the
result file (or --gflops, of another machine) times the share of it that each stage reached there.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Shape:
    """A model's sizes."""

    name: str
    layers: int
    width: int
    mlp: int
    kv: int
    vocab: int
    tied: bool = False

    @property
    def blocks(self) -> float:
        """Weights of all blocks (gated MLP, grouped-query attention)."""
        return self.layers * (2 * self.width**2 + 2 * self.width * self.kv + 3 * self.width * self.mlp)

    @property
    def unembed(self) -> float:
        """Weights of the unembedding."""
        return self.width * self.vocab

    @property
    def weights_gb(self) -> float:
        """In bfloat16."""
        return 2 * (self.blocks + self.unembed * (1 if self.tied else 2)) / 1e9


SHAPES = (
    Shape("Qwen-1.8B", 24, 2048, 5504, 2048, 151936),
    Shape("Qwen2.5-7B", 28, 3584, 18944, 512, 152064),
    Shape("Qwen2.5-14B", 48, 5120, 13824, 1024, 152064),
    Shape("Qwen2.5-32B", 64, 5120, 27648, 1024, 152064),
    Shape("Qwen2.5-72B", 80, 8192, 29568, 1024, 152064),
)
TEMPLATE, OWN, POST, SUFFIX = 24, 12, 5, 20  # tokens: shared beginning, request, post-instruction, suffix
TRAIN, VAL, ATTACKED, SUFFIXES = 256, 64, 128, 10_000  # prompts: both kinds together; for suffixes harmful ones


def packed(prompts: int) -> int:
    """Tokens of packed prompts: their own, and the shared beginning once."""
    return prompts * (OWN + POST) + TEMPLATE


def work(shape: Shape, share_inducing: float) -> dict[str, float]:
    """Operations of each stage."""
    cut = int(0.8 * shape.layers)
    # Layer 0 has no difference; induce restarts at its layer, and the last MLP runs at the last positions only.
    restarted = sum((shape.layers - layer) / shape.layers for layer in range(1, cut))
    candidates = POST * (cut - 1)
    one = packed(VAL // 2)
    passes = POST * restarted + 2 * share_inducing * candidates
    tokens = {
        "extraction": (packed(TRAIN), 0.0),
        "selection": (passes * one, (1 + 2 * share_inducing) * candidates * VAL / 2),
        "full grid": (POST * (shape.layers - 1) * 2.5 * one, 3 * POST * (shape.layers - 1) * VAL / 2),
        "suffixes": (ATTACKED * (SUFFIXES * (SUFFIX + POST) + TEMPLATE + OWN), float(ATTACKED * SUFFIXES)),
    }
    return {stage: 2 * (inside * shape.blocks + rows * shape.unembed) for stage, (inside, rows) in tokens.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "results",
        type=Path,
        nargs="+",
        help="JSON of make bench on a model whose GEMMs are large; several where its rows are",
    )
    parser.add_argument("--gflops", type=float, help="GEMM peak of another machine, in GFLOP/s")
    parser.add_argument(
        "--share-inducing", type=float, default=0.1, help="of the candidates, that bypass and KL run on"
    )
    args = parser.parse_args()
    results = [json.loads(path.read_text()) for path in args.results]
    shares = {row["name"]: row["share_of_gemm_peak"] for result in results for row in result["rows"]}
    rate = (args.gflops or max(result["gemm_peak_gflops"] for result in results)) * 1e9
    rows = {"extraction": "extraction", "selection": "selection", "full grid": "full grid", "suffixes": "suffix batch"}
    if missing := set(rows.values()) - set(shares):
        raise SystemExit(f"no row in the results for {', '.join(sorted(missing))}")
    reached = {stage: shares[row] for stage, row in rows.items()}
    print(f"GEMM {rate / 1e9:.0f} GFLOP/s; reached: " + ", ".join(f"{k} {v:.0%}" for k, v in reached.items()) + "\n")
    print("| model | weights in bfloat16, GB | " + " | ".join(f"{stage}, h" for stage in reached) + " |")
    print("|---|---|" + "---|" * len(reached))
    for shape in SHAPES:
        hours = {k: v / rate / reached[k] / 3600 for k, v in work(shape, args.share_inducing).items()}
        print(f"| {shape.name} | {shape.weights_gb:.1f} | " + " | ".join(f"{hours[k]:.3g}" for k in reached) + " |")


if __name__ == "__main__":
    main()
