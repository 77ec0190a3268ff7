"""Beyond the paper: is one direction enough? Subspaces by dimension; categories of harm, and languages.

Categories come from a column of a file (`--groups FILE`), without the test prompts. Languages are 42 requests of our
own (`languages.json`): enough to show the method, too few to tell apart angles below those between halves of one
language, or to say anything of a language as such. Learned directions join from `analyses.cones --study`.

    python -m analyses.subspace [MODEL] [--k K] [--groups FILE] [--column NAME] [--out DIR]
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from analyses.common import finish, parser, prepared, show
from refusal_lens.data.organism import instructions
from refusal_lens.data.prompts import prompt_groups
from refusal_lens.direction.cone_section import subspace_section
from refusal_lens.direction.subspace import group_angles, pca_subspace, repeated_subspace, subspace_effects
from refusal_lens.direction.transfer import Ground, effect_matrix
from refusal_lens.records.direction import Subspace


def main() -> None:
    arguments = parser(__doc__, "subspace")
    arguments.add_argument("--k", type=int, default=4, help="most directions")
    arguments.add_argument("--groups", help="file of harmful requests with categories (default: the embedded model's)")
    arguments.add_argument("--column", default="category", help="its column of categories")
    arguments.add_argument("--least", type=int, default=8, help="fewest prompts of a category")
    arguments.add_argument("--most", type=int, default=6, help="most categories, largest first")
    arguments.add_argument("--languages", type=Path, default=Path(__file__).with_name("languages.json"))
    args = arguments.parse_args()
    model, study = prepared(args)
    r, tokens = study.selection.chosen, study.refusal_tokens
    test = study.harmful.test.texts, study.harmless.test.texts
    source, categories = args.groups or (instructions()["harmful"] if args.model == "organism" else None), None
    if source is None:
        print("no categories of harm, and nothing for the study's report: name a file that has them with --groups")
    else:
        every = prompt_groups(source, args.column, test[0])
        groups = dict([(name, some) for name, some in every.items() if len(some) >= args.least][: args.most])
        print(f"categories: {', '.join(groups)}; left out: {', '.join(n for n in every if n not in groups) or 'none'}")
        categories = group_angles(model, groups, study.harmless.train, r, least=args.least)
    train = study.harmful.train.texts, study.harmless.train.texts
    spaces = {"difference in means": Subspace(r.unit.double()[None], "mean", r)}
    spaces |= {
        make.__name__.split("_")[0]: make(model, *train, r, args.k) for make in (pca_subspace, repeated_subspace)
    }
    spaces |= {"categories": categories.subspace.first(args.k)} if categories else {}
    for learned in (study.cones or ())[1:3]:
        spaces[f"learned, {learned.dimension}"] = learned.cone(learned.seeds[0])
    effects = subspace_effects(model, spaces, *test, tokens, max_new_tokens=args.max_new_tokens)
    for kind, cosine in zip(effects.kinds, effects.leading_cosine, strict=True):
        print(f"first direction of {kind}: cosine {cosine:+.3f} with r̂")
    sides = json.loads(args.languages.read_text("utf-8"))
    harmful, harmless = ({name: own[kind] for name, own in sides.items()} for kind in ("harmful", "harmless"))
    languages = group_angles(model, harmful, harmless, r)
    directions = {"r": r}
    directions |= {n: replace(r, unit=v[0].float()) for n, v in zip(languages.names, languages.basis, strict=True)}
    grounds = {name: Ground(tuple(some), tokens) for name, some in {"test prompts": test[0], **harmful}.items()}
    transfer = effect_matrix(model, directions, grounds)
    records = {"effects": effects, "languages": languages, "transfer": transfer}
    records |= {"categories": categories} if categories else {}
    for record in records.values():
        show(record.to_frame())
    print(*effects.summary(), *(categories.summary() if categories else ()), *languages.summary(), sep="\n")
    for name, record in records.items():
        record.save(study.folder / "subspaces" / name)  # the study's report shows them
    page = [subspace_section(effects, categories, languages, transfer)]
    finish(args, "Is one direction enough?", page, **records)


if __name__ == "__main__":
    main()
