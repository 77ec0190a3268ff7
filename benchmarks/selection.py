"""Selection beside the paper's algorithm, in one process and one run: ``make bench``.

python -m benchmarks.selection [--model organism] [--harmful F --harmless F] [--n-val 32] [--out DIR]
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch

from refusal_lens import load_model
from refusal_lens.extraction import extract_directions
from refusal_lens.organism import instructions
from refusal_lens.prompts import PromptSet
from refusal_lens.records import SelectionScores
from refusal_lens.scoring import given_refusal_tokens, keep_refused
from refusal_lens.selection import SelectionRule, choose, select_direction

from .plain import Plain


def timed(work: Any) -> tuple[Any, float]:
    """(result, seconds)."""
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def gemm_peak(dtype: torch.dtype, n: int = 2048) -> float:
    """Matrix-multiply rate of this machine, GFLOP/s: the best of five."""
    a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    return max(2 * n**3 / timed(lambda: a @ b)[1] / 1e9 for _ in range(5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="organism")
    parser.add_argument("--harmful", default=str(instructions()["harmful"]))
    parser.add_argument("--harmless", default=str(instructions()["harmless"]))
    parser.add_argument("--n-pool", type=int, default=160, help="prompts of each kind, filtered as the paper does")
    parser.add_argument("--n-val", type=int, default=32, help="of these, so many for validation, the rest to extract")
    parser.add_argument("--coeff", type=float, default=1.0)
    parser.add_argument("--max-kl", type=float, default=0.1)
    parser.add_argument("--refusal-token", nargs="+", default=["I"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()

    model = load_model(args.model)
    sets = [PromptSet.load(source, sizes=(args.n_pool, 1, 1)).train for source in (args.harmful, args.harmless)]
    tokens = given_refusal_tokens(model, args.refusal_token)
    pools = keep_refused(model, *sets, tokens)
    (harmful_val, harmless_val), (harmful, harmless) = zip(
        *[(p[: args.n_val], p[args.n_val :]) for p in pools], strict=True
    )
    rule = SelectionRule(max_kl=args.max_kl)
    # A plain copy of the model: the bridge has changed the one it was given.
    plain_hf = type(model.backend.hf)(copy.deepcopy(model.backend.hf.config))
    plain_hf.load_state_dict(_plain_state(model.backend.hf, plain_hf))
    plain = Plain(plain_hf.to(model.dtype).to(model.device), model.tokenize, tokens.ids)

    candidates, ours_extract = timed(lambda: extract_directions(model, harmful, harmless))
    diffs, plain_extract = timed(lambda: plain.mean_diff(harmful, harmless, len(candidates.positions)))

    def select(full_grid: bool) -> Any:
        return select_direction(
            model,
            candidates,
            harmful_val,
            harmless_val,
            refusal_tokens=tokens,
            rule=rule,
            coeff=args.coeff,
            full_grid=full_grid,
        )

    select(False)  # warm both up: the first pass packs weights
    plain.last_logits(harmful_val)
    ours, ours_time = timed(lambda: select(False))
    _, grid_time = timed(lambda: select(True))
    grid, plain_time = timed(lambda: plain.select(candidates.mean_diff, harmful_val, harmless_val, args.coeff))
    winner = choose(SelectionScores(*grid), rule).chosen
    result = {
        "model": model.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "gemm_peak_gflops": round(gemm_peak(model.dtype), 1),
        "n_train": [len(harmful), len(harmless)],
        "n_val": [len(harmful_val), len(harmless_val)],
        "candidates": int(grid[0].numel()),
        "seconds": {
            "selection": ours_time,
            "full grid": grid_time,
            "plain algorithm": plain_time,
            "extraction": ours_extract,
            "plain extraction": plain_extract,
        },
        "ratio": {
            "selection": plain_time / ours_time,
            "full grid": plain_time / grid_time,
            "extraction": plain_extract / ours_extract,
        },
        "winner": {"ours": [ours.chosen.pos, ours.chosen.layer], "plain": list(winner or ())},
        "extraction_relative_gap": float((candidates.mean_diff - diffs).abs().max() / diffs.abs().max()),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"selection-{model.name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    print(f"same winner: {result['winner']['ours'] == result['winner']['plain']}; written to {path}")


def _plain_state(bridged: Any, plain: Any) -> dict[str, torch.Tensor]:
    """The bridge's weights under the names of a plain model: its wrappers put their own words into the names."""
    found = {}
    for name, value in list(bridged.named_parameters()) + list(bridged.named_buffers()):
        found[name.replace("._original_component", "").replace("_original_component.", "")] = value.detach()
    state = plain.state_dict()
    for name in state:
        source = name if name in found else "model.embed_tokens.weight"  # tied unembedding
        state[name] = found[source].to(state[name].dtype)
    return state


if __name__ == "__main__":
    main()
