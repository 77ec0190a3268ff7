"""Beyond the paper: detectors of harmful requests: the projection beside fitted probes, at 1% false alarms.

    python -m analyses.detectors [MODEL] [--suffixes FILE] [--borderline FILE] [--contrasts FILE] [--out DIR]

Prompts of the same source that neither found nor chose the direction are validation and test prompts: of the harmless
ones up to 500 each, if there are as many. The first suffix of the file (or ``--limit`` of them) follows both kinds.
"""

from __future__ import annotations

from dataclasses import replace

from analyses.common import finish, parser, prepared, show
from analyses.suffix_common import with_suffixes
from refusal_lens import load_prompts
from refusal_lens.data.borderline import load_borderline
from refusal_lens.data.prompts import PromptPair, Prompts, PromptSet
from refusal_lens.data.suffixes import SuffixSet
from refusal_lens.hijacking.probe_records import ENOUGH
from refusal_lens.hijacking.probes import compare_detectors
from refusal_lens.hijacking.section import detectors_section
from refusal_lens.study.config import StudyConfig


def held_out(every: PromptSet, used: PromptSet, most: int) -> PromptSet:
    """The study's training prompts, and new validation and test prompts of the same source."""
    known = {*used.train, *used.val}
    pool = (*every.test, *every.val, *every.spare_val, *every.spare_train)
    new = [text for text in dict.fromkeys(pool) if text not in known]
    n = min(most, len(new) // 2)
    return replace(used, val=Prompts(tuple(new[n : 2 * n])), test=Prompts(tuple(new[:n])))


def main() -> None:
    arguments = with_suffixes(parser(__doc__, "detectors"))
    arguments.add_argument("--borderline", help="harmless requests that look harmful: a file or a preset")
    arguments.add_argument("--contrasts", help="unsafe requests beside them, e.g. or-bench-toxic.csv")
    arguments.add_argument("--harmless-prompts", type=int, default=ENOUGH, help="most harmless prompts per split")
    args = arguments.parse_args()
    borderline = load_borderline(args.borderline, args.contrasts)
    suffixes = [suffix.text for suffix in SuffixSet.load(args.suffixes)][: args.limit or 1]
    model, study = prepared(args)
    sources = StudyConfig(model=args.model, harmful=args.harmful, harmless=args.harmless).sources()
    every = load_prompts(*sources, sizes=(args.train, ENOUGH, ENOUGH))
    data = PromptPair(
        held_out(every.harmful, study.harmful, args.prompts),
        held_out(every.harmless, study.harmless, args.harmless_prompts),
    )
    record = compare_detectors(model, data, study.selection.chosen, borderline, suffixes, seed=args.seed + 1)
    record.save(study.folder / "detectors")  # the study's report shows it
    print(*record.summary(), sep="\n")
    show(record.to_frame())
    finish(args, "Detectors against baselines", [detectors_section(record)], detectors=record)


if __name__ == "__main__":
    main()
