"""Fig. 5: cosine of the last token's residual stream with r̂ by layer, plain, suffixed, random and harmless.

python -m analyses.fig5_suffix_trace [MODEL] [--suffixes FILE] [--out DIR]
"""

from __future__ import annotations

from analyses.common import finish, parser, prepared
from analyses.suffix_common import investigated, with_suffixes
from refusal_lens.hijacking.figures import plot_suffix_trace
from refusal_lens.report.page import Figure, Section


def main() -> None:
    args = with_suffixes(parser(__doc__, "fig5_suffix_trace")).parse_args()
    report = investigated(args, *prepared(args), causal="none")
    result = report.result()
    site = report.direction.layer
    for o in filter(None, (report.plain, result.suffixed, result.random, report.harmless)):
        print(
            f"{o.condition:9} n = {o.n:3}  cosine at layer {site}: last token {float(o.cosine[site].mean()):+.3f}, "
            f"instruction's last token {float(o.instruction_cosine[site].mean()):+.3f}; refused {o.refusal_rate}"
        )
    departs = result.departure()
    print("departs from random at site:", "nowhere" if departs is None else departs)
    figures = [
        Figure(
            f"trace-{what}",
            plot_suffix_trace(report, result, (what, f"instruction_{what}")),
            f"{what.capitalize()} with the direction by layer, suffix {result.suffix.text.strip()!r}; left at the last "
            "position, right at the instruction's last token; band of one standard deviation.",
            n=f"{report.plain.n} refused prompts",
            control="random tokens of equal length, drawn afresh for each prompt",
        )
        for what in ("cosine", "projection")
    ]
    finish(args, "Fig. 5: a suffix, layer by layer", [Section("trace", "By layer", (), tuple(figures))], report=report)


if __name__ == "__main__":
    main()
