"""Beyond the paper: a direction from one prompt set tested on others (topics, data sets, languages).

Each --set NAME=FILE holds harmful prompts; by default the study's harmful prompts are split into questions and
orders. Half of each set gives its direction (against the harmless training prompts), the other half is tested on.

    python -m analyses.transfer [MODEL] [--set NAME=FILE ...] [--out DIR]
"""

from __future__ import annotations

from analyses.common import finish, parser, prepared, prompts_of, show
from refusal_lens.direction.extract import extract_directions
from refusal_lens.direction.section import effects_section
from refusal_lens.direction.transfer import Ground, effect_matrix


def main() -> None:
    arguments = parser(__doc__, "transfer")
    arguments.add_argument("--set", action="append", help="NAME=FILE of harmful prompts; repeatable")
    args = arguments.parse_args()
    model, study = prepared(args)
    chosen, tokens = study.selection.chosen, study.refusal_tokens
    if args.set:
        sets = {name: (texts[::2], texts[1::2]) for name, texts in map(prompts_of, args.set)}
    else:
        held_out = [*study.harmful.val, *study.harmful.test]
        parts = {"questions": lambda t: "?" in t, "orders": lambda t: "?" not in t}
        sets = {
            name: ([t for t in study.harmful.train if of(t)], [t for t in held_out if of(t)])
            for name, of in parts.items()
        }
    small = [name for name, halves in sets.items() if min(map(len, halves)) < 2]
    if small:
        arguments.error(f"the set {small[0]} has too few prompts: give at least 4 in each --set NAME=FILE")
    directions = {
        name: extract_directions(model, train, study.harmless.train.texts).direction(chosen.pos, chosen.layer)
        for name, (train, _) in sets.items()
    }
    harmful = {name: Ground(tuple(test), tokens) for name, (_, test) in sets.items()}
    harmless = {"harmless": Ground(study.harmless.test.texts, tokens)}
    records = {
        "ablation": effect_matrix(model, directions, harmful),
        "addition": effect_matrix(model, directions, harmless, "addition"),
    }
    for record in records.values():
        show(record.to_frame())
    sections = [effects_section(r, f"transfer-{name}", f"Transfer: {name}") for name, r in records.items()]
    finish(args, "Transfer", sections, **records)


if __name__ == "__main__":
    main()
