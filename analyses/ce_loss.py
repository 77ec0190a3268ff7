"""Appendix G.3, Table 9: CE loss and perplexity on text, on chat completions and on the model's own completions.

python -m analyses.ce_loss [MODEL] [--text FILE.txt] [--completions FILE.jsonl] [--out DIR]
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from analyses.common import finish, parser, prepared, show
from refusal_lens.behaviour.cross_entropy import losses
from refusal_lens.behaviour.section import losses_section
from refusal_lens.hooks.conditions import named_conditions
from refusal_lens.models.texts import completion_tokens, own_completions, text_tokens
from refusal_lens.records.labels import EFFECTS


def main() -> None:
    arguments = parser(__doc__, "ce_loss")
    arguments.add_argument("--text", type=Path, help="plain text, one document per line (the paper: The Pile)")
    arguments.add_argument("--completions", type=Path, help="JSON lines of instruction and output (the paper: Alpaca)")
    args = arguments.parse_args()
    model, study = prepared(args)
    prompts = study.harmless.test.texts
    names = ("baseline", *(n for n in EFFECTS if n != "addition"), "random_ablation", "random_subtraction")
    conditions = named_conditions(study.selection.chosen, names, allow_gap=True)
    own = own_completions(model, prompts, args.max_new_tokens)
    texts = args.text.read_text("utf-8").splitlines() if args.text else list(prompts)
    scored = {"text" if args.text else "requests as text": text_tokens(model, [t for t in texts if t.strip()])}
    if args.completions:
        rows = [json.loads(line) for line in args.completions.read_text("utf-8").splitlines() if line.strip()]
        requests, replies = ([row[key] for row in rows] for key in ("instruction", "output"))
        scored["completions"] = completion_tokens(model, requests, replies)
    scored["own completions"] = own
    found = {name: losses(model, items, conditions, name) for name, items in scored.items()}
    show(pd.concat([record.to_frame() for record in found.values()]))
    records = {f"losses_{name.replace(' ', '_')}": record for name, record in found.items()}
    finish(args, "CE loss", [losses_section(list(found.values()))], **records)


if __name__ == "__main__":
    main()
