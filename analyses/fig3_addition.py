"""Fig. 3: refusal of harmless prompts with the direction added at its layer.

python -m analyses.fig3_addition [MODEL] [--out DIR]
"""

from __future__ import annotations

from analyses.common import finish, parser, prepared, show
from refusal_lens.behaviour.section import evaluation_section
from refusal_lens.behaviour.table import evaluate_table
from refusal_lens.study.sections import scorecard_section

CONDITIONS = ("baseline", "addition", "random_addition")


def main() -> None:
    args = parser(__doc__, "fig3_addition").parse_args()
    model, study = prepared(args)
    table = evaluate_table(
        model,
        study.selection.chosen,
        {"harmless": study.harmless.test.texts},
        args.out,
        conditions=CONDITIONS,
        max_new_tokens=args.max_new_tokens,
    )
    show(table.to_frame())
    finish(args, "Fig. 3: addition", [evaluation_section(table), scorecard_section(study.summary)])


if __name__ == "__main__":
    main()
