"""Beyond the paper: does the direction still work after fine-tuning on benign data?

python -m analyses.fine_tuning [MODEL] [--completions FILE.jsonl] [--steps N ...] [--lr LR] [--out DIR]

Without a file the model learns to answer harmless requests in one sentence: its own replies, cut after the first.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from analyses.common import finish, parser, prepared, show
from refusal_lens.direction.fine_tuning import fine_tuning_stability
from refusal_lens.direction.section import fine_tuning_section
from refusal_lens.models.texts import completion_tokens


def first_sentence(reply: str) -> str:
    """Up to the first full stop, exclamation or question mark."""
    return re.split(r"(?<=[.!?])\s", reply.strip(), maxsplit=1)[0]


def main() -> None:
    arguments = parser(__doc__, "fine_tuning")
    arguments.add_argument("--completions", type=Path, help="JSON lines of instruction and output, benign")
    arguments.add_argument("--steps", type=int, nargs="+", default=[0, 10, 30, 100], help="when to measure")
    arguments.add_argument("--lr", type=float, default=3e-4)
    args = arguments.parse_args()
    model, study = prepared(args)
    end = model.tokenizer.eos_token or ""
    if args.completions:
        rows = [json.loads(line) for line in args.completions.read_text("utf-8").splitlines() if line.strip()]
        prompts, replies = [row["instruction"] for row in rows], [row["output"] + end for row in rows]
    else:
        prompts = list(study.harmless.train.texts)
        replies = [first_sentence(reply) + end for reply in model.generate(prompts, args.max_new_tokens)]
    benign = completion_tokens(model, prompts, replies)
    cut = max(1, len(benign) // 5)
    found = fine_tuning_stability(
        model,
        study.selection.chosen,
        benign[cut:],
        benign[:cut],
        (study.harmful.train.texts, study.harmless.train.texts),
        (study.harmful.test.texts, study.harmless.test.texts),
        steps=args.steps,
        lr=args.lr,
        max_new_tokens=args.max_new_tokens,
    )
    show(found.to_frame())
    finish(args, "Stability after fine-tuning", [fine_tuning_section(found)], fine_tuning=found)


if __name__ == "__main__":
    main()
