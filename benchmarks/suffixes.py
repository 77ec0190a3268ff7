"""Many suffixes behind the same prompts: the shared prefix's gain, and what 100 suffixes x 128 prompts would take.

python -m benchmarks.suffixes MODEL --direction RUN --harmful FILE [--suffixes 100] [--prompts 4] [--tokens 20]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from refusal_lens import load_model
from refusal_lens.attribution import head_contributions
from refusal_lens.attribution.heads import choose_heads
from refusal_lens.evaluation_table import read_prompts
from refusal_lens.hijacking import screen
from refusal_lens.study import Study
from refusal_lens.suffixes import SuffixSet, random_controls

WHOLE = (100, 128)  # suffixes, prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="organism")
    parser.add_argument("--direction", type=Path, default=Path("runs/latest"), help="folder of `refusal-lens run`")
    parser.add_argument("--harmful", help="file of prompts (default: the test prompts of RUN)")
    parser.add_argument("--suffixes", type=int, default=100, help="random suffixes")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=20, help="tokens of each suffix")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()

    study, model = Study.load(args.direction), load_model(args.model)
    prompts = (read_prompts(args.harmful)[1] if args.harmful else list(study.harmful.test))[: args.prompts]
    drawn = random_controls(model.chat, ["Hello there"] * args.suffixes, " " + "a " * args.tokens)
    suffixes = SuffixSet.from_rows(list(drawn.texts))
    texts = [item.text for item in suffixes]
    heads = choose_heads(head_contributions(model, list(study.harmful.val)[:8], study.selection.chosen), 8)
    seconds, metric = {}, {}
    for name, shared in (("shared prefix", True), ("whole prompts", False)):
        kept, model.backend.supports_prefix = model.backend.supports_prefix, shared and model.backend.supports_prefix
        start = time.perf_counter()
        metric[name] = screen(model, prompts, texts, study.refusal_tokens, heads).metric
        seconds[name] = time.perf_counter() - start
        model.backend.supports_prefix = kept
    done = len(texts) * len(prompts)
    hours = {name: took / done * WHOLE[0] * WHOLE[1] / 3600 for name, took in seconds.items()}
    result = {
        "model": model.name,
        "dtype": str(model.dtype),
        "threads": torch.get_num_threads(),
        "suffixes": len(texts),
        "prompts": len(prompts),
        "tokens": {
            "suffix": suffixes.lengths(model.chat, prompts[0])[0],
            "prompt": len(model.chat.encode(prompts[0]).ids),
        },
        "seconds": seconds,
        "per_second": {name: done / took for name, took in seconds.items()},
        "hours_for_100_x_128": hours,
        "largest_difference": float((metric["shared prefix"] - metric["whole prompts"]).abs().max()),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"suffixes-{model.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
