"""Fig. 6: the top heads' contributions and attention by region, plain, suffixed and random; the split of the drop.

python -m analyses.fig6_suffix_heads [MODEL] [--suffixes FILE] [--out DIR]
"""

from __future__ import annotations

import pandas as pd

from analyses.common import finish, parser, prepared, show
from analyses.suffix_common import investigated, with_suffixes
from refusal_lens.hijacking.section import hijacking_section
from refusal_lens.records.labels import head_label


def main() -> None:
    args = with_suffixes(parser(__doc__, "fig6_suffix_heads")).parse_args()
    report = investigated(args, *prepared(args), causal="none")
    result = report.result()
    rows = []
    for i, head in enumerate(report.top_heads):
        row: dict[str, str | float] = {"head": head_label(*head)}
        for o in (report.plain, result.random, result.suffixed):
            row[f"along r, {o.condition}"] = float(o.heads[head].mean())
            row[f"to suffix, {o.condition}"] = float(o.attention_to("suffix")[i].mean())
        row["moved"] = float(result.from_random.moved[head].mean())
        row["changed"] = float(result.from_random.changed[head].mean())
        row["p"] = float(result.p_heads[head])
        rows.append(row)
    print(f"suffix {result.suffix.text.strip()!r}, n = {report.plain.n}; heads from {len(report.head_prompts)} others")
    show(pd.DataFrame(rows))
    show(report.drop_parts(result))
    finish(args, "Fig. 6: heads under a suffix", [hijacking_section(report)], report=report)


if __name__ == "__main__":
    main()
