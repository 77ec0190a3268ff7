"""The causal table: what cutting, patching and restoring bring back, beside random heads and placebo, for each suffix.

python -m analyses.causal_table [MODEL] [--suffixes FILE] [--out DIR]
"""

from __future__ import annotations

from analyses.common import finish, parser, prepared, show
from analyses.suffix_common import investigated, with_suffixes
from refusal_lens.hijacking.mechanisms import mechanism
from refusal_lens.hijacking.section import hijacking_cards, hijacking_section
from refusal_lens.report.page import Section, Table, plain


def main() -> None:
    args = with_suffixes(parser(__doc__, "causal_table")).parse_args()
    report = investigated(args, *prepared(args))
    show(report.results_frame().drop(columns=["p"]))
    tables = []
    for i, result in enumerate(report.results):
        said = f"{result.suffix.text.strip()!r}: {mechanism(result).sentence}"
        print(f"\n{said}")
        if result.causal is None:
            continue
        frame = result.causal.to_frame()
        show(frame.drop(columns=["random_low", "random_high", "placebo_low", "placebo_high"]))
        rows = tuple(tuple(plain(v) for v in row) for row in frame.itertuples(index=False, name=None))
        tables.append(
            Table(
                f"causal-{i}",
                tuple(frame.columns),
                rows,
                f"{result.suffix.text.strip()!r}. {mechanism(result).sentence}",
            )
        )
    for card in hijacking_cards(report):
        print(f"{card.value} {card.label} ({card.detail})")
    sections = [hijacking_section(report), Section("causal", "Causal tests of each suffix", (), tuple(tables))]
    finish(args, "Causal tests of suffixes", sections, report=report)


if __name__ == "__main__":
    main()
