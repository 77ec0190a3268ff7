"""Beyond Fig. 6: many suffixes: which work, why heads turn to them, which heads recur; the strongest in detail.

python -m analyses.many_suffixes [MODEL] [--suffixes FILE] [--count N] [--n PROMPTS] [--detail K] [--out DIR]
"""

from __future__ import annotations

from analyses.common import finish, parser, prepared, show
from analyses.suffix_common import loaded, with_suffixes
from refusal_lens.attribution.components import heads as head_contributions
from refusal_lens.attribution.ranking import choose_heads
from refusal_lens.data.suffixes import SuffixSet
from refusal_lens.engines.local import named_engine
from refusal_lens.hijacking.circuits import finding
from refusal_lens.hijacking.controls import filled_up
from refusal_lens.hijacking.investigation import Settings, investigate
from refusal_lens.hijacking.many import many_suffixes
from refusal_lens.hijacking.many_section import many_section
from refusal_lens.hijacking.section import hijacking_section
from refusal_lens.records.store import Store
from refusal_lens.refusal.metric import refused_prompts
from refusal_lens.study.config import StudyConfig

COLUMNS = ["suffix", "metric_drop", "low", "high", "not_refused", "random", "grade", "dominance"]


def main() -> None:
    arguments = with_suffixes(parser(__doc__, "many_suffixes"))
    arguments.add_argument("--count", type=int, default=0, help="fill up to N with random tokens and benign suffixes")
    arguments.add_argument("--n", type=int, default=128, help="refused prompts that every suffix is measured on")
    arguments.add_argument("--detail", type=int, default=5, help="strongest suffixes to look into")
    arguments.add_argument("--controls", type=int, default=2, help="controls to look into")
    arguments.add_argument("--detail-n", type=int, default=32, help="prompts of these")
    arguments.add_argument("--choose", type=int, default=32, help="validation prompts that choose the heads")
    arguments.add_argument("--grid", nargs="*", default=[], metavar="SITE", help="patching grids of these: take long")
    arguments.add_argument("--engine", default="local", help="local or ray")
    args = arguments.parse_args()
    model, study = prepared(args)
    found = loaded(args)
    tokens, direction, choosing = study.refusal_tokens, study.selection.chosen, list(study.harmful.val)[: args.choose]
    found = filled_up(found, args.count, model.chat, choosing, list(study.harmless.val), args.seed)
    refused, read = refused_prompts(model, list(study.harmful.test), tokens, args.n + args.detail_n)
    cut = min(args.n, max(len(refused) - args.detail_n, len(refused) // 2))
    prompts, reported = refused[:cut], refused[cut:]  # the strongest are chosen on some, and looked into on others
    print(f"{len(found)} suffixes x {cut} refused prompts (of {read}); heads chosen on {len(choosing)} others")
    top = choose_heads(head_contributions(model, choosing, direction), min(8, model.n_heads))
    engine, store = named_engine(args.engine, StudyConfig(model=args.model))(model), Store(args.out)
    many = many_suffixes(model, prompts, found, direction, top, tokens, seed=args.seed, store=store, engine=engine)
    many.save(study.folder / "many")  # the study's report shows it
    show(many.to_frame()[[*COLUMNS, "explained by"]])
    for by in ("attention", "write"):
        for name, pair in many.overlaps(by).items():
            print(
                f"shared part of the top heads by {by}, {name}: {pair.found}; random heads of the layers {pair.chance}"
            )
        show(many.recurring(by).head(8))
    show(many.cluster_frame())
    show(many.beside_dominance())
    print(many.agreement())
    report = investigate(
        model,
        reported,
        SuffixSet("strongest", many.strongest(args.detail, args.controls)),
        direction,
        head_prompts=choosing,
        refusal_tokens=tokens,
        settings=Settings(
            causal="all", shuffled=False, max_new_tokens=args.max_new_tokens, seed=args.seed, grids=tuple(args.grid)
        ),
        folder=args.out / "suffixes",
        engine=engine,
    )
    engine.close()
    for result in report.results:
        print(f"{result.suffix.text.strip()!r} ({result.suffix.kind}): {finding(result)}")
    finish(args, "Many suffixes", [many_section(many), hijacking_section(report)], many=many, report=report)


if __name__ == "__main__":
    main()
