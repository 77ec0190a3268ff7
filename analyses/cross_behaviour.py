"""Beyond the paper: does ablating refusal's direction move another behaviour, and the other way round?

The other behaviour is any two prompt files; by default requests for a list against other harmless requests.

    python -m analyses.cross_behaviour [MODEL] [--positive FILE --negative FILE] [--out DIR]
"""

from __future__ import annotations

from analyses.common import finish, parser, prepared, prompts_of, show
from refusal_lens.direction.extract import extract_directions
from refusal_lens.direction.section import effects_section
from refusal_lens.direction.transfer import Ground, effect_matrix
from refusal_lens.refusal.tokens import behaviour_tokens

LIST_WORDS = ("tips", "steps", "ideas", "list")


def main() -> None:
    arguments = parser(__doc__, "cross_behaviour")
    arguments.add_argument("--positive", help="prompts that show the other behaviour")
    arguments.add_argument("--negative", help="prompts that do not")
    args = arguments.parse_args()
    model, study = prepared(args)
    refusal = study.selection.chosen
    if args.positive and args.negative:
        positive, negative = (prompts_of(source)[1] for source in (args.positive, args.negative))
    else:
        texts = [*study.harmless.train, *study.harmless.val, *study.harmless.test]
        positive = [t for t in texts if any(word in t.lower() for word in LIST_WORDS)]
        negative = [t for t in texts if t not in positive]
    if min(len(positive), len(negative)) < 4:
        arguments.error("the other behaviour has fewer than 4 prompts of a kind: give --positive and --negative")
    other = extract_directions(model, positive[::2], negative[::2]).direction(refusal.pos, refusal.layer)
    tokens = behaviour_tokens(model, positive[::2], negative[::2])
    print(f"the other behaviour: {len(positive)} and {len(negative)} prompts, its tokens {tokens.texts}")
    grounds = {
        "refusal: harmful": Ground(study.harmful.test.texts, study.refusal_tokens),
        "refusal: harmless": Ground(study.harmless.test.texts, study.refusal_tokens),
        "other: positive": Ground(tuple(positive[1::2]), tokens),
        "other: negative": Ground(tuple(negative[1::2]), tokens),
    }
    directions = {"refusal": refusal, "other": other}
    records = {effect: effect_matrix(model, directions, grounds, effect) for effect in ("ablation", "addition")}
    for record in records.values():
        show(record.to_frame())
    shown, absent = (
        records["ablation"].baseline[list(grounds).index(f"other: {kind}")] for kind in ("positive", "negative")
    )
    if not shown.low > absent.high:
        print(
            "the other behaviour's metric does not differ between its two kinds of prompts: no behaviour to move here"
        )
    print(f"cosine of the two directions: {records['ablation'].cosines[0][1]:+.3f}")
    sections = [effects_section(r, f"cross-{name}", f"Cross-effects: {name}") for name, r in records.items()]
    finish(args, "Two behaviours", sections, **records)


if __name__ == "__main__":
    main()
