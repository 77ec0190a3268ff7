"""Suffixes under the microscope: the section of the report.

"hijack" and "because" are written only for suffixes whose causal test passed; both words come from ``verdicts``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from ..report.page import Card, Figure, Item, Note, Option, Page, Picker, Row, Section, Table, Widget
from ..stats import mean_interval
from .figures import (
    paired_attention,
    plot_attention_positions,
    plot_attention_regions,
    plot_causal_tests,
    plot_drop_waterfall,
    plot_roc,
    plot_split,
    plot_suffix_heads,
    plot_suffix_ranking,
    plot_suffix_trace,
    plot_token_effects,
    suffix_label,
)
from .records import HijackingReport, SuffixResult
from .verdicts import MECHANISMS, summary_frame, verdict

MAX_PATTERNS = 4  # of these, so many with attention on every stored prompt; the others on one
MAX_SUFFIXES = 16  # suffixes whose figures are in the page: the strongest, so that it stays small
RANDOM = "random tokens of equal length, drawn afresh for each prompt"
_COLUMNS = (
    "suffix",
    "refused",
    "random tokens",
    "shuffled",
    "metric drop",
    "share",
    "attention rise",
    "departs at",
    "finding",
)


def hijacking_cards(report: HijackingReport) -> tuple[Card, ...]:
    """Headline numbers: plain, the strongest suffix, its random control, its cut."""
    result = strongest(report)
    if result is None:
        return ()
    cards = [
        Card(f"{report.plain.refusal_rate.rate:.0%}", "harmful prompts refused, plain", str(report.plain.refusal_rate)),
        Card(
            f"{result.suffixed.refusal_rate.rate:.0%}",
            "refused with the strongest suffix",
            f"random tokens: {result.random.refusal_rate}",
        ),
    ]
    if result.causal is not None:
        back = result.causal.refusals_back("cut top heads")
        cards.append(Card(f"{back.rate:.0%}", "of the lost refusals back when the top heads cannot see it", str(back)))
    return tuple(cards)


def strongest(report: HijackingReport) -> SuffixResult | None:
    """The suffix that lowers the refusal metric most below random tokens, attacks before benign ones."""
    attacks = [r for r in report.results if r.suffix.is_attack] or list(report.results)
    return max(attacks, key=lambda r: r.metric_drop.mean) if attacks else None


def hijacking_page(report: HijackingReport) -> Page:
    """The section as a page of its own."""
    return Page(
        title=f"Suffixes and {report.model}", cards=hijacking_cards(report), sections=(hijacking_section(report),)
    )


def hijacking_section(report: HijackingReport) -> Section:
    """The section, every suffix that was looked into behind a picker."""
    text = [
        f"{report.plain.n} harmful prompts that {report.model} refuses, each plain, with each suffix, and with random "
        f"tokens of equal length. The top {len(report.top_heads)} heads ({', '.join(report.head_labels)}) were chosen "
        f"on {len(report.head_prompts)} other prompts.",
        *report.notes,
        *suffix_findings(report),
    ]
    items: list[Item] = [_summary(report)]
    if len(report.suffixes) > 1:
        items.append(
            Figure(
                "suffix-ranking",
                plot_suffix_ranking(report),
                "Left: refusal metric under every suffix, lowest first, with 95% intervals. Right: the suffix's share "
                "of what the top heads write at the last position (dominance), against the share of instructions "
                "whose refusal metric it takes below 0. Click a suffix, or pick it from the list below.",
                n=f"{len(report.suffixes)} suffixes x {report.plain.n} prompts",
                control="benign and random suffixes",
                data=screened_frame(report),
                picks="suffix-picker",
            )
        )
    if report.results:
        items.append(suffix_picker(report))
    if report.detectors is not None:
        items += _detector_items(report)
        if failures := report.detectors.failures():
            text.append(f"Where a detector fails at site {report.detectors.site}: {'; '.join(failures)}.")
    return Section("suffixes", "Suffix attacks", tuple(text), tuple(items))


def suffix_findings(report: HijackingReport) -> tuple[str, ...]:
    """How many suffixes work and by which mechanism, and the strongest one in full."""
    said = []
    for attack, what in ((True, "meant to stop refusals"), (False, "benign or random")):
        some = [r for r in report.results if r.suffix.is_attack == attack]
        if not some:
            continue
        working = [verdict(r).mechanism for r in some if r.works]
        count = f"Of {len(some)} suffixes {what}, " if len(some) > 1 else f"Of 1 suffix {what}, "
        said.append(f"{count}{len(working)} stop refusals beyond random tokens{_ways(working)}.")
    result = strongest(report)
    if result is not None:
        said.append(f"The strongest, {result.suffix.text.strip()!r}: {verdict(result).sentence}")
    return tuple(said)


def _ways(mechanisms: Sequence[str]) -> str:
    """How the suffixes that work do so, counted: ": all of them through the attention of the top heads"."""
    words = {
        MECHANISMS["untested"]: "in a way that was not tested",
        MECHANISMS["top heads"]: "through the attention of the top heads",
        MECHANISMS["attention"]: "through the attention of many heads",
        MECHANISMS["direction"]: "through the direction, but not by attention from the post-instruction positions",
        MECHANISMS["otherwise"]: "in another way",
    }
    counted = Counter(mechanisms)
    if not counted:
        return ""
    if len(counted) == 1:
        return f", {'all of them ' if len(mechanisms) > 1 else ''}{words[mechanisms[0]]}"
    return ": " + ", ".join(f"{n} {words[mechanism]}" for mechanism, n in counted.items())


def suffix_picker(report: HijackingReport) -> Picker:
    """Each suffix up close, strongest first."""
    options = []
    for rank, result in enumerate(_ordered(report)):
        index = report.suffixes.index(result.suffix)
        label = suffix_label(index, result.suffix)
        shown = len(result.patterns) if rank < MAX_PATTERNS else 2
        some = replace(result, patterns=result.patterns[:shown])
        items = _details(report, some, f"suffix-{index}") if rank < MAX_SUFFIXES else (_not_stored(result),)
        options.append(Option(label, tuple(items), f"{label} ({result.suffix.kind})"))
    return Picker("suffix-picker", "suffix", tuple(options))


def _not_stored(result: SuffixResult) -> Note:
    return Note(
        f"{verdict(result).sentence} Its figures are not in this page, which keeps the {MAX_SUFFIXES} suffixes that "
        "lower the refusal metric most; they can be drawn from the result folder."
    )


def screened_frame(report: HijackingReport) -> pd.DataFrame:
    """One row a suffix: metric with interval, strength, share of instructions whose metric is below 0, n."""
    rows = []
    universal = report.screened_universality()
    for i, item in enumerate(report.suffixes):
        found = mean_interval(report.screened[i].tolist())
        strength = float(report.screened_strength[i].mean())
        rows.append((item.kind, item.text, found.mean, found.low, found.high, strength, universal[i].rate, found.n))
    columns = ["kind", "suffix", "refusal_metric", "low", "high", "strength", "below_0", "n"]
    return pd.DataFrame(rows, columns=columns)


def _ordered(report: HijackingReport) -> list[SuffixResult]:
    return sorted(report.results, key=lambda r: -r.metric_drop.mean)


def _summary(report: HijackingReport) -> Table:
    frame = summary_frame(report)
    rows = tuple(
        (
            f"{row['suffix'].strip()} ({row['kind']}, {row['tokens']} tokens)",
            f"{row['refused']:.0%}",
            f"{row['refused_random']:.0%}",
            "" if row["refused_shuffled"] != row["refused_shuffled"] else f"{row['refused_shuffled']:.0%}",
            f"{row['metric_drop']:.2f} [{row['low']:.2f}, {row['high']:.2f}], p {row['p']:.1g}",
            f"{row['strength']:.2f}",
            f"{row['attention_rise']:+.2f}",
            "" if row["departs_at"] < 0 else str(row["departs_at"]),
            row["mechanism"],
        )
        for row in frame.to_dict("records")
    )
    return Table(
        "suffix-table",
        _COLUMNS,
        rows,
        f"The suffixes that were looked into, n = {report.plain.n} prompts each; control: {RANDOM}. Metric drop: from "
        "random tokens, with its 95% interval and p adjusted over suffixes. Share: the suffix's part of what the top "
        "heads write at the last position. Attention rise: of the top heads, above random tokens. Departs at: the "
        "first site from which the projection stays below random.",
        searchable=True,
        data=frame,
    )


def _details(report: HijackingReport, result: SuffixResult, name: str) -> list[Item]:
    n = f"{report.plain.n} prompts"
    rises = ", ".join(f"{label} {value:+.2f}" for label, value in result.strongest_rises())
    items: list[Item] = [
        Note(verdict(result).sentence),
        Figure(
            f"{name}-trace",
            plot_suffix_trace(report, result),
            "Cosine with the direction by layer, at the last position and at the instruction's last token (is the harm "
            "still seen there?); band of one standard deviation; dotted: the layer of the direction.",
            n=n,
            control=RANDOM,
        ),
        Figure(
            f"{name}-heads",
            plot_suffix_heads(report, result),
            "What the top heads write along the direction at the last position, 95% intervals.",
            n=f"{n}, heads chosen on {len(report.head_prompts)} others",
            control=RANDOM,
        ),
        Figure(
            f"{name}-attention",
            plot_attention_regions(report, result),
            "Where the top heads look from the last position; each column adds up to 1. Of all heads, attention to the "
            f"suffix rises most above random tokens in {rises}.",
            n=n,
            control=RANDOM,
        ),
        Figure(
            f"{name}-positions",
            plot_attention_positions(report, result),
            "Attention to the suffix from every post-instruction position.",
            n=n,
            control=RANDOM,
        ),
        Figure(
            f"{name}-split",
            plot_split(report, result),
            "The drop of each head, split exactly into attention moved (weights) and values changed.",
            n=n,
            control="the drop counts from random tokens of equal length",
        ),
        Figure(
            f"{name}-waterfall",
            plot_drop_waterfall(report, result),
            "The drop of the projection from plain to suffixed, part by part; the parts add up to it.",
            n=n,
            control="none applies: these are exact parts of one sum",
            data=report.drop_parts(result),
        ),
    ]
    if result.causal is not None:
        items.append(
            Figure(
                f"{name}-causal",
                plot_causal_tests(result.causal),
                "What each intervention on the suffixed run brings back of the refusal metric's drop (reverse: what it "
                "brings about in the clean run), 95% bootstrap intervals.",
                n=n,
                control="random heads of the same layers; random changes of equal norm",
                data=result.causal.to_frame(),
            )
        )
    if result.tokens is not None:
        items.append(
            Figure(
                f"{name}-tokens",
                plot_token_effects(result.tokens),
                "Above: refusal metric back when this token is left out. Below: what the top heads take from it along "
                "the direction.",
                n=f"{result.tokens.removed.shape[-1]} prompts",
                control="the other tokens",
                data=result.tokens.to_frame(),
            )
        )
    if result.patterns:
        items.append(_pattern_picker(result, name))
    return items


def _pattern_picker(result: SuffixResult, name: str) -> Picker:
    """One head's attention on a few prompts, plain beside suffixed."""
    pairs = list(zip(result.patterns[::2], result.patterns[1::2], strict=True))
    options = []
    for i, pair in enumerate(pairs):
        head = pair[0].labels[0]
        widgets = [
            Widget(
                f"{name}-pattern-{i}-{what}",
                *props,
                f"Attention of {head}, {what}"
                + ("; · where only the suffixed prompt has a token." if what == "plain" else "."),
                n="1 prompt",
                control="plain beside suffixed",
                data=_matrix(props[1]),
            )
            for what, props in zip(("plain", "suffixed"), paired_attention(pair), strict=True)
        ]
        prompt = pair[0].prompt
        options.append(Option(str(i), (Row(tuple(widgets)),), prompt if len(prompt) < 60 else prompt[:59] + "…"))
    return Picker(f"{name}-prompts", "prompt", tuple(options), sync="suffix-prompt")


def _matrix(props: dict[str, Any]) -> pd.DataFrame:
    """The pattern as a square: a row a destination, a column a source, numbered as in the view."""
    names = [f"{i} {token}" for i, token in enumerate(props["tokens"])]
    frame = pd.DataFrame(props["attention"][0], columns=names).round(3)
    frame.insert(0, "destination", names)
    return frame


def _detector_items(report: HijackingReport) -> Sequence[Figure | Table]:
    found = report.detectors
    assert found is not None
    frame = found.to_frame()
    columns = ("score", "group", "AUROC", "95% interval", "flagged", "95% interval ", "n")
    rows = tuple(
        (
            row["score"],
            row["group"],
            "" if row["auroc"] != row["auroc"] else f"{row['auroc']:.3f}",
            "" if row["auroc"] != row["auroc"] else f"{row['auroc_low']:.3f} to {row['auroc_high']:.3f}",
            f"{row['flagged']:.0%}",
            f"{row['flagged_low']:.0%} to {row['flagged_high']:.0%}",
            str(row["n"]),
        )
        for row in frame.to_dict("records")
    )
    sizes = ", ".join(f"{found.groups.count(g)} {g}" for g in found.group_names)
    return (
        Figure(
            "suffix-roc",
            plot_roc(found),
            "Harmful prompts told from all harmless ones by the projection on the direction: at the last token, its "
            "maximum over the instruction's tokens, and both.",
            n=sizes,
            control="harmless prompts, plain and with the same suffixes",
            data=found.by_site(),
        ),
        Table(
            "suffix-detectors",
            columns,
            rows,
            f"At resid_pre of layer {found.site}; the threshold lets at most 5% of the plain harmless prompts through, "
            "on which it was set.",
            data=frame,
        ),
    )
