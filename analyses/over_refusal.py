"""Beyond the paper: over-refusal (Wang et al. 2024): borderline prompts by condition, and false refusal ablated.

    python -m analyses.over_refusal [MODEL] [--borderline FILE] [--contrasts FILE] [--out DIR]

FILE is XSTest's or OR-Bench's, or holds requests of your own; the presets "xstest" and "or-bench" fetch them. Without
one, 60 requests of the package stand in.
"""

from __future__ import annotations

from dataclasses import replace

from analyses.common import finish, parser, prepared, show
from refusal_lens.behaviour.false_refusal import SHOWN, over_refusal
from refusal_lens.behaviour.section import over_refusal_section
from refusal_lens.data.borderline import load_borderline
from refusal_lens.data.prompts import PromptPair
from refusal_lens.direction.records import FoundDirection


def main() -> None:
    arguments = parser(__doc__, "over_refusal")
    arguments.add_argument("--borderline", help="harmless requests that look harmful: a file or a preset")
    arguments.add_argument("--contrasts", help="unsafe requests beside them, e.g. or-bench-toxic.csv")
    arguments.add_argument("--condition", action="append", help="conditions of the direction (default: the main ones)")
    arguments.add_argument("--seed", type=int, default=1, help="seed of the random directions")
    args = arguments.parse_args()
    borderline = load_borderline(args.borderline, args.contrasts)
    print(borderline, *borderline.notes, sep="\n")
    model, study = prepared(args)
    kinds = (study.harmful, study.harmless)
    data = PromptPair(*(replace(kind, test=kind.test[: args.prompts]) for kind in kinds))
    found = FoundDirection(study.selection, study.candidates, study.refusal_tokens)
    how = {"conditions": args.condition or SHOWN, "max_new_tokens": args.max_new_tokens, "seed": args.seed}
    record = over_refusal(model, data, found, borderline, **how)
    record.save(study.folder / "over_refusal")  # the study's report shows it
    print(*record.summary(), sep="\n")
    show(record.to_frame())
    finish(args, "Over-refusal", [over_refusal_section(record)], over_refusal=record)


if __name__ == "__main__":
    main()
