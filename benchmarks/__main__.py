"""Speed and memory beside a plain implementation, in one process and one run: ``make bench``.

python -m benchmarks [--model organism] [--harmful F --harmless F] [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from refusal_lens.data.organism import instructions
from refusal_lens.data.organism import suffixes as embedded_suffixes
from refusal_lens.data.prompts import PromptSet
from refusal_lens.data.suffixes import SuffixSet
from refusal_lens.direction.extract import extract_directions
from refusal_lens.direction.select import SelectionRule
from refusal_lens.errors import RefusalLensError
from refusal_lens.refusal.metric import keep_refused
from refusal_lens.refusal.tokens import given_refusal_tokens
from refusal_lens.study.config import StudyConfig

from .groups import GROUPS
from .measure import gemm_peak, machine
from .models import named, plain_copy
from .plain import Plain
from .rows import Ground, Row


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, or what is given in its place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="organism", help="as in load_model, or random:1.5b")
    parser.add_argument("--harmful", default=str(instructions()["harmful"]))
    parser.add_argument("--harmless", default=str(instructions()["harmless"]))
    parser.add_argument("--n-train", type=int, default=64, help="prompts of each kind for extraction")
    parser.add_argument("--n-val", type=int, default=32, help="and for the other rows")
    parser.add_argument("--n-test", type=int, default=32, help="test prompts of each kind, for the stages of a study")
    parser.add_argument("--pool", type=int, default=0, help="prompts of each kind before the paper's filter")
    parser.add_argument(
        "--unfiltered", action="store_true", help="leave the filter out: the time does not depend on it"
    )
    parser.add_argument("--n-suffixes", type=int, default=64)
    parser.add_argument("--positions", type=int, default=0, help="of the candidates, the last so many; 0 for all")
    parser.add_argument("--layers", type=int, default=1, help="of the candidates, every so many")
    parser.add_argument("--turns", type=int, default=1, help="of selection, full grid and suffixes")
    parser.add_argument("--rows", nargs="+", default=list(GROUPS), choices=list(GROUPS))
    parser.add_argument("--every", type=int, default=1, help="time the plain selection on every so many candidates")
    parser.add_argument("--coeff", type=float, default=1.0)
    parser.add_argument("--max-kl", type=float, default=0.1)
    parser.add_argument("--min-induce", type=float, default=0.0)
    parser.add_argument("--refusal-token", default="I")
    parser.add_argument("--name", help="of the result file; the model's if left out")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args(given)


def ground(args: argparse.Namespace) -> Ground:
    """Model, prompts and candidates."""
    model = named(args.model)
    plain = plain_copy(model)
    size = args.n_train + args.n_val
    # Room for the paper's filter, which a model of random weights does without: it refuses nothing.
    unfiltered = args.unfiltered or args.model.startswith("random:")
    pool = size if unfiltered else args.pool or 2 * size
    sets = [list(PromptSet.load(source, sizes=(pool, 1, 1)).train) for source in (args.harmful, args.harmless)]
    tokens = given_refusal_tokens(model, [args.refusal_token])
    pools = sets if unfiltered else keep_refused(model, *sets, tokens)
    if (left := min(map(len, pools))) < size:
        raise SystemExit(f"the filter left {left} prompts of a kind and {size} are needed: raise --pool")
    val, train = zip(*[(p[: args.n_val], p[args.n_val : size]) for p in pools], strict=True)
    candidates = extract_directions(model, *train)
    if args.positions:
        keep = {
            name: getattr(candidates, name)[-args.positions :]
            for name in ("mean_diff", "harmful_mean", "harmless_mean", "pos_labels")
        }
        candidates = dataclasses.replace(candidates, **keep)
    if args.layers > 1:
        kept = candidates.mean_diff.clone()
        kept[:, torch.arange(candidates.n_layers) % args.layers > 0] = 0
        candidates = dataclasses.replace(candidates, mean_diff=kept)
    suffixes = [item.text for item in SuffixSet.load(embedded_suffixes())]
    # The embedded model's few, each cut to many lengths: the time of a suffix depends on its length only.
    words = [text.split() for text in suffixes]
    many = [" " + " ".join(w[: k + 1]) for k in range(max(map(len, words))) for w in words if k < len(w)]
    return Ground(
        model=model,
        plain=Plain(plain, model.tokenize, tokens.ids),
        train=train,
        val=val,
        tokens=tokens,
        candidates=candidates,
        suffixes=list(dict.fromkeys(many))[: args.n_suffixes],
        rule=SelectionRule(max_kl=args.max_kl, min_induce=args.min_induce),
        coeff=args.coeff,
        every=args.every,
        turns=args.turns,
        config=config_of(args),
    )


def config_of(args: argparse.Namespace) -> StudyConfig:
    """Settings of the default run: the command line's own for the embedded model, or those of a model and prompts."""
    how: dict[str, Any] = {"full_grid": True, "stability": 10, "suffixes": "organism"}
    if args.model != "organism":
        how = {"harmful": args.harmful, "harmless": args.harmless, "refusal_tokens": (args.refusal_token,)}
    how |= {"max_kl": args.max_kl, "coeff": args.coeff, "relax": True}
    return StudyConfig(args.model, sizes=(args.n_train, args.n_val, args.n_test), **how)


def as_json(row: Row, peak: float) -> dict[str, Any]:
    """A row with what follows from it."""
    ours, plain = row.seconds
    # A CPU that other work shares is judged by its own time; a GPU works while the processor waits for it.
    busy = math.inf if torch.cuda.is_available() else row.cpu[0] / torch.get_num_threads()
    found = {
        **dataclasses.asdict(row),
        "ratio": plain / ours,
        "cpu_ratio": row.cpu[1] / row.cpu[0],
        "tokens_per_second": row.tokens / ours,
        "gemm_peak_gflops": peak,
        "share_of_gemm_peak": row.gflop / min(ours, busy) / peak if row.gflop else None,
    }
    return {name: _known(value) for name, value in found.items()}


def _known(value: Any) -> Any:
    """None for NaN, which JSON does not have."""
    if isinstance(value, tuple):
        return tuple(map(_known, value))
    return None if isinstance(value, float) and math.isnan(value) else value


def table(result: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        "| row | prompts | ours, s | plain, s | ratio | ratio of CPU time | peak memory ours / plain, MB | tokens/s | "
        "of GEMM peak |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        share = "" if row["share_of_gemm_peak"] is None else f"{row['share_of_gemm_peak']:.0%}"
        rate = f"{row['tokens_per_second']:.0f}" if row["tokens"] else ""
        memory = " / ".join(number(value, ".0f") for value in row["peak_mb"])
        cells = [row["name"], row["prompts"], *(number(value, ".3g") for value in row["seconds"])]
        cells += [number(row["ratio"], ".2f"), number(row["cpu_ratio"], ".2f"), memory, rate, share]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def number(value: float | None, form: str) -> str:
    """A number, or a dash where nothing was measured."""
    return "-" if value is None or math.isnan(value) else format(value, form)


def main() -> None:
    """Measure, print, write JSON."""
    args = arguments()
    g = ground(args)
    m = g.model
    g.plain.last_logits(g.val[0])  # the first pass packs weights
    rows, peaks = [], [gemm_peak(m.dtype, m.device)]
    for group in args.rows:
        found = []
        try:
            for row in GROUPS[group](g):
                found.append(row)
                plain = number(row.seconds[1], ".3g")
                print(f"{row.name}: {row.seconds[0]:.3g} s, plain {plain} s. {row.note}", flush=True)
        except RefusalLensError as error:  # a model that refuses nothing has no refusal to learn from
            print(f"the rest of {group} is left out: {error}", flush=True)
        peaks.append(gemm_peak(m.dtype, m.device))
        # Of before and after the higher one: other work on the machine lowers it, nothing raises it.
        rows += [as_json(row, max(peaks[-2:])) for row in found]
    result = {
        "model": m.name,
        "dtype": str(m.dtype).removeprefix("torch."),
        "machine": machine(),
        "torch": torch.__version__,
        "gemm_peak_gflops": max(peaks),
        "arguments": {
            k: str(v)
            for k, v in vars(args).items()
            if k in ("n_train", "n_val", "every", "coeff", "max_kl", "positions", "layers", "turns", "unfiltered")
        },
        "candidates": g.candidates.mean_diff[..., 0].numel(),
        "rows": rows,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{args.name or m.name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{m.name}, {result['dtype']}, {result['machine']}, GEMM {min(peaks):.0f} to {max(peaks):.0f} GFLOP/s\n")
    print(f"{table(result)}\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
