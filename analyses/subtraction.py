"""Appendix I.1: subtracting the direction at its layer as the bypass, beside ablation, and what it costs in loss.

python -m analyses.subtraction [MODEL] [--out DIR]
"""

from __future__ import annotations

from analyses.common import finish, parser, prepared, show
from refusal_lens.behaviour.cross_entropy import losses
from refusal_lens.behaviour.section import evaluation_section, losses_section
from refusal_lens.behaviour.table import evaluate_table
from refusal_lens.hooks.conditions import named_conditions
from refusal_lens.models.texts import own_completions

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
