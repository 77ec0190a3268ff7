"""Where the time of a selection pass goes, by operator: what fusing or compiling could win at most.

python -m benchmarks.operators [--model organism] [--prompts 16] [--rows 4]
"""

from __future__ import annotations

import argparse

import torch
from torch.profiler import ProfilerActivity, profile

from refusal_lens import Ablate
from refusal_lens.data.organism import instructions
from refusal_lens.data.prompts import PromptSet
from refusal_lens.models.packing import RestartedPack, pack_tokens
from refusal_lens.records.direction import Direction

from .models import named

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")


def main() -> None:
    """Profile one pass of some candidates and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="organism", help="as in load_model, or random:1.5b")
    parser.add_argument("--harmless", default=str(instructions()["harmless"]))
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--rows", type=int, default=4, help="candidates of one pass")
    args = parser.parse_args()
    model = named(args.model)
    prompts = list(PromptSet.load(args.harmless, sizes=(args.prompts, 1, 1)).train)
    pack = RestartedPack(model, pack_tokens(model.tokenize(prompts), model.chat.pad_id))
    direction = Direction(torch.eye(model.d_model)[0], 1.0, -1, 1)

    def work() -> None:
        with torch.inference_mode(), model.hooks(Ablate(direction)):
            list(pack.logits(args.rows))

    work()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    with profile(activities=activities) as profiled:
        work()
    seconds = {e.key: (e.self_device_time_total or e.self_cpu_time_total) / 1e6 for e in profiled.key_averages()}
    total = sum(seconds.values())
    print(f"{model.name}: {args.rows} candidates, {args.prompts} prompts, {total:.2f} s")
    print(f"matrix products: {sum(seconds.get(name, 0.0) for name in PRODUCTS) / total:.1%}")
    for name, part in sorted(seconds.items(), key=lambda item: -item[1])[:8]:
        print(f"  {name}: {part / total:.1%}")


if __name__ == "__main__":
    main()
