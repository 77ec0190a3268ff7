"""Beyond Fig. 6: why attention moves to a suffix, which components wrote the scores, and how many heads are needed.

python -m analyses.suffix_attention [MODEL] [--suffixes FILE] [--out DIR]
"""

from __future__ import annotations

from analyses.common import finish, parser, prepared, show
from analyses.suffix_common import investigated, with_suffixes
from refusal_lens.hijacking.section import hijacking_section


def main() -> None:
    args = with_suffixes(parser(__doc__, "suffix_attention")).parse_args()
    report = investigated(args, *prepared(args))
    for result in report.results:
        print(f"\nsuffix {result.suffix.text.strip()!r} ({result.suffix.kind}), n = {report.plain.n}")
        if result.shift is None or result.curves is None:
            print("not explained: it does not stop refusals beyond random tokens, or its scores can't be split")
            continue
        print(result.shift.sentence())
        for target in ("suffix", "instruction"):
            print(f"change of attention on the {target}, relative to random tokens:")
            show(result.shift.to_frame(target))
        show(result.shift.compositions())
        show(result.shift.competitors().sort_values("gained", ascending=False).head(8))
        print(result.curves.sentence())
        show(result.curves.to_frame())
        for way in ("cut", "only"):
            areas = ", ".join(
                f"{order} {result.curves.area(way, order)}" for order in ("attribution", "greedy", "random")
            )
            print(f"area under the curve, {way}: {areas}")
    finish(args, "Why attention moves to a suffix", [hijacking_section(report)], report=report)


if __name__ == "__main__":
    main()
