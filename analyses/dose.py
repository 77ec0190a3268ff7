"""Beyond the paper: how much, and where: refusal, KL and degenerate replies by strength, layers and positions.

Places and strengths are compared on validation prompts; the best of each effect is reported on test prompts.

    python -m analyses.dose [MODEL] [--n N] [--strength EFFECT=S,S ...] [--place NAME=POSITIONS ...] [--out DIR]
"""

from __future__ import annotations

from dataclasses import replace

from analyses.common import finish, parser, prepared, show
from refusal_lens.data.prompts import PromptPair
from refusal_lens.direction.dose import STRENGTHS, Scope, default_scopes, dose_response
from refusal_lens.direction.records import FoundDirection
from refusal_lens.direction.section import dose_section

COLUMNS = ["scope", "effect", "strength", "condition", "refused", "readable", "metric", "kl", "loss", "degenerate"]


def first(prompts: PromptPair, n: int) -> PromptPair:
    """The first ``n`` validation and test prompts of each kind."""
    return PromptPair(*(replace(kind, val=kind.val[:n], test=kind.test[:n]) for kind in prompts))


def main() -> None:
    arguments = parser(__doc__, "dose")
    arguments.add_argument("--n", type=int, default=24, help="most prompts of each kind and split")
    arguments.add_argument("--strength", action="append", help="EFFECT=S,S: ablation, addition or capping, strengths")
    arguments.add_argument("--place", action="append", help="NAME=POSITIONS, e.g. template=template_post, last=-1")
    args = arguments.parse_args()
    model, study = prepared(args)
    found = FoundDirection(study.selection, study.candidates, study.refusal_tokens)
    data = first(PromptPair(study.harmful, study.harmless), args.n)
    strengths = {
        name: tuple(map(float, values.split(",")))
        for name, _, values in (item.partition("=") for item in args.strength or [])
    } or STRENGTHS
    scopes = default_scopes(found.direction.layer) | {"last token": Scope(positions=slice(-1, None))}
    if args.place:
        places = {name: place for name, _, place in (item.partition("=") for item in args.place)}
        scopes = {
            name: Scope(positions=slice(int(place), None) if place.startswith("-") else {"all": None}.get(place, place))
            for name, place in places.items()
        }
    sizes = {"max_new_tokens": args.max_new_tokens}
    compared = dose_response(model, data, found, strengths=strengths, scopes=scopes, split="val", **sizes)
    compared.save(study.folder / "dose")  # the study's report shows it
    show(compared.to_frame()[COLUMNS])
    print(*compared.summary(), sep="\n")
    records, sections = {"compared": compared}, [dose_section(compared, "compared", "On validation prompts")]
    for effect in compared.effects:
        scope, strength = compared.best(effect)
        best = dose_response(model, data, found, strengths={effect: [strength]}, scopes={scope: scopes[scope]}, **sizes)
        print(f"chosen for {effect}: {strength:g} at {scope}; on test prompts: {best.summary()[0]}")
        for name in ("refused", "readable", "kl", "loss", "degenerate"):
            ours, random = (best.found(scope, best.doses[0], c, name) for c in ("direction", "random"))
            print(f"  {name}: {ours}; random {random}; without {best.before(effect, name)}")
        if effect == "addition":
            print(f"  a reply: {best.examples[0][0]!r}")
        records[f"test_{effect}"] = best
        sections.append(dose_section(best, f"test-{effect}", f"{effect.capitalize()} on test prompts"))
    finish(args, "Dose and place", sections, **records)


if __name__ == "__main__":
    main()
