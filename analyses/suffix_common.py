"""What the suffix scripts share: their arguments, and the investigation (done once, then resumed)."""

from __future__ import annotations

import argparse
from pathlib import Path

from refusal_lens import HookedChatModel
from refusal_lens.data import organism
from refusal_lens.data.suffixes import SuffixSet
from refusal_lens.hijacking.investigation import Settings, investigate
from refusal_lens.hijacking.records import Investigation
from refusal_lens.study.folder import Study


def with_suffixes(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds ``--suffixes`` and ``--seed``."""
    parser.add_argument("--suffixes", type=Path, default=organism.suffixes(), help="suffix file (the organism's)")
    parser.add_argument("--column", action="append", default=[], help="suffix, kind or score = the file's column")
    parser.add_argument("--limit", type=int, default=0, help="most suffixes to use; 0 for all")
    parser.add_argument("--seed", type=int, default=0, help="seed of random suffixes, heads and placebos")
    return parser


def loaded(args: argparse.Namespace) -> SuffixSet:
    """The suffixes of the file."""
    found = SuffixSet.load(args.suffixes, columns=dict(item.split("=", 1) for item in args.column))
    return SuffixSet(found.name, found.items[: args.limit or None], found.notes)


def investigated(
    args: argparse.Namespace, model: HookedChatModel, study: Study, causal: str = "working"
) -> Investigation:
    """Suffixes after the held-out harmful prompts; the heads are chosen on the validation prompts."""
    found = loaded(args)
    lengths = found.lengths(model.chat, study.harmful.test[0])
    print(f"{len(found)} suffixes ({', '.join(found.kinds)}) of {min(lengths)} to {max(lengths)} tokens")
    return investigate(
        model,
        study.harmful,
        found,
        study.selection.chosen,
        harmless=study.harmless,
        refusal_tokens=study.refusal_tokens,
        settings=Settings(causal=causal, max_new_tokens=args.max_new_tokens, seed=args.seed),
        folder=args.out / "suffixes",
    )
