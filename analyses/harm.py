"""Beyond the paper: refusal or harmfulness (Zhao et al. 2025): both directions, cross-effects, and what suffixes move.

The first two suffixes of the file (or ``--limit`` of them) are read on both directions, each beside random tokens of
equal length.

    python -m analyses.harm [MODEL] [--suffixes FILE] [--out DIR]
"""

from __future__ import annotations

from analyses.common import finish, parser, prepared, show
from analyses.suffix_common import with_suffixes
from refusal_lens.data.prompts import PromptPair
from refusal_lens.data.suffixes import SuffixSet
from refusal_lens.direction.harm import harm_effects, harm_map
from refusal_lens.direction.records import FoundDirection
from refusal_lens.direction.section import harm_section
from refusal_lens.hijacking.controls import random_controls


def main() -> None:
    args = with_suffixes(parser(__doc__, "harm")).parse_args()
    model, study = prepared(args)
    data = PromptPair(study.harmful, study.harmless)
    found = FoundDirection(study.selection, study.candidates, study.refusal_tokens)
    suffixes: dict[str, str | tuple[str, ...]] = {}
    for suffix in SuffixSet.load(args.suffixes).items[: args.limit or 2]:
        drawn = random_controls(model.chat, data.harmful.test.texts, suffix.text, args.seed).texts
        suffixes |= {suffix.text.strip(): suffix.text, f"random tokens for {suffix.text.strip()}": drawn}
    record = harm_map(model, data, found, suffixes)
    ablation, addition = harm_effects(model, data, record, study.refusal_tokens, args.seed)
    print(*record.summary(), sep="\n")
    for name, control in zip(record.suffixes[::2], record.suffixes[1::2], strict=True):
        print(f"{name!r} against its random tokens: harm {record.shift('harm', name, control)}")
    for matrix in (ablation, addition):
        show(matrix.to_frame())
    page = [harm_section(record, ablation, addition)]
    finish(args, "Refusal or harmfulness", page, map=record, ablation=ablation, addition=addition)


if __name__ == "__main__":
    main()
