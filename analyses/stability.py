"""Beyond the paper: how often each candidate wins when the training prompts are resampled.

python -m analyses.stability [MODEL] [--resamples N] [--out DIR]
"""

from __future__ import annotations

from analyses.common import finish, parser, prepared, show
from refusal_lens.direction.section import stability_section
from refusal_lens.direction.stability import selection_stability


def main() -> None:
    arguments = parser(__doc__, "stability")
    arguments.add_argument("--resamples", type=int, default=20)
    args = arguments.parse_args()
    model, study = prepared(args)
    prompts = study.harmful, study.harmless
    found = selection_stability(model, *prompts, study.refusal_tokens, resamples=args.resamples)
    show(found.to_frame())
    print(f"cosine of two winners: {found.pairwise()}; with all prompts' winner: {found.to_reference.mean():.3f}")
    finish(args, "Stability of the selection", [stability_section(found)], stability=found)


if __name__ == "__main__":
    main()
