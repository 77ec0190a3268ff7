"""Appendix I.1: subtracting the direction at its layer as the bypass, beside ablation, and what it costs in loss.

python -m analyses.subtraction [MODEL] [--out DIR]
"""

from __future__ import annotations

from analyses.common import finish, parser, prepared, show
from refusal_lens.evaluation import named_conditions
from refusal_lens.evaluation_table import evaluate_table
from refusal_lens.losses import losses, own_completions
from refusal_lens.report.evaluation import evaluation_section, losses_section

CONDITIONS = ("baseline", "ablation", "subtraction", "random_ablation", "random_subtraction")


def main() -> None:
    args = parser(__doc__, "subtraction").parse_args()
    model, study = prepared(args)
    direction = study.selection.chosen
    table = evaluate_table(
        model,
        direction,
        {"harmful": study.harmful.test.texts},
        args.out,
        conditions=CONDITIONS,
        max_new_tokens=args.max_new_tokens,
    )
    own = own_completions(model, study.harmless.test.texts, args.max_new_tokens)
    found = losses(model, own, named_conditions(direction, CONDITIONS), "own completions")
    show(table.to_frame())
    show(found.to_frame())
    finish(args, "Subtraction", [evaluation_section(table), losses_section([found])], losses=found)


if __name__ == "__main__":
    main()
