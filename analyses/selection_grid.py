"""Appendix C: bypass, induce and KL of every candidate, and why each was dropped.

python -m analyses.selection_grid [MODEL] [--out DIR]
"""

from __future__ import annotations

from analyses.common import finish, parser, prepared, show
from refusal_lens.direction.section import direction_section
from refusal_lens.direction.select import select_direction


def main() -> None:
    args = parser(__doc__, "selection_grid").parse_args()
    model, study = prepared(args)
    selection = select_direction(
        model,
        study.candidates,
        study.harmful.val.texts,
        study.harmless.val.texts,
        refusal_tokens=study.refusal_tokens,
        full_grid=True,
        relax=True,
    )
    frame = selection.scores.to_frame()
    frame["reason"] = [reason or "kept" for row in selection.reasons for reason in row]
    show(frame)
    same = "the same as" if selection.chosen.label == study.selection.chosen.label else "NOT that of"
    print(
        f"the full grid's winner {selection.chosen.label} is {same} the shorter search's {study.selection.chosen.label}"
    )
    finish(args, "Selection grid", [direction_section(selection, study.candidates)], selection=selection)


if __name__ == "__main__":
    main()
