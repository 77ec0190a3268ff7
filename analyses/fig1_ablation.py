"""Fig. 1: refusal of harmful prompts at baseline and with the direction ablated, by hooks and by weights.

python -m analyses.fig1_ablation [MODEL] [--judge JUDGE ...] [--out DIR]
"""

from __future__ import annotations

from analyses.common import finish, parser, prepared, show
from refusal_lens.behaviour.judges.naming import judge_named
from refusal_lens.behaviour.section import evaluation_section
from refusal_lens.behaviour.table import evaluate_table
from refusal_lens.study.sections import scorecard_section

CONDITIONS = ("baseline", "ablation", "orthogonalized", "random_ablation", "random_orthogonalized")


def main() -> None:
    arguments = parser(__doc__, "fig1_ablation")
    arguments.add_argument(
        "--judge", action="append", help="as for `refusal-lens evaluate`; the paper's phrases by default"
    )
    args = arguments.parse_args()
    model, study = prepared(args)
    if model.backend.norm_after_writes():
        print("norms follow the writes here: 'orthogonalized' is not equivalent to ablation (allow_gap)")
    table = evaluate_table(
        model,
        study.selection.chosen,
        {"harmful": study.harmful.test.texts},
        args.out,
        conditions=CONDITIONS,
        judges=[judge_named(name) for name in args.judge or ["substrings"]],
        max_new_tokens=args.max_new_tokens,
        allow_gap=True,
    )
    show(table.to_frame())
    finish(args, "Fig. 1: ablation", [evaluation_section(table), scorecard_section(study.summary)])


if __name__ == "__main__":
    main()
