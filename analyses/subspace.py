"""Beyond the paper: is it one direction? Ablating subspaces from PCA and from repeated difference-in-means.

python -m analyses.subspace [MODEL] [--k K] [--out DIR]
"""

from __future__ import annotations

from analyses.common import finish, parser, prepared, show
from refusal_lens.direction.section import subspace_section
from refusal_lens.direction.subspace import pca_subspace, repeated_subspace, subspace_effects


def main() -> None:
    arguments = parser(__doc__, "subspace")
    arguments.add_argument("--k", type=int, default=4, help="most directions")
    args = arguments.parse_args()
    model, study = prepared(args)
    train = study.harmful.train.texts, study.harmless.train.texts
    spaces = [make(model, *train, study.selection.chosen, args.k) for make in (pca_subspace, repeated_subspace)]
    test = study.harmful.test.texts, study.harmless.test.texts
    found = subspace_effects(model, spaces, *test, study.refusal_tokens)
    show(found.to_frame())
    for kind, cosine in zip(found.kinds, found.leading_cosine, strict=True):
        print(f"first direction of {kind}: cosine {cosine:+.3f} with r̂")
    records = {f"subspace_{space.kind}": space for space in spaces}
    finish(args, "More than one direction", [subspace_section(found)], effects=found, **records)


if __name__ == "__main__":
    main()
