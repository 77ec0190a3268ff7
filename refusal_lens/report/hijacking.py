"""Suffixes under the microscope: the section of the report.

"hijack" and "because" are written only for suffixes whose causal test passed; both words come from ``verdicts``.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..hijacking.records import HijackingReport, SuffixResult
from ..hijacking.verdicts import summary_frame, verdict
from ..plots import hijacking as plots
from .page import Card, Figure, Section, Table, Widget

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


def hijacking_section(report: HijackingReport, detailed: SuffixResult | None = None) -> Section:
    """The section.

    Args:
        report: the result of ``hijacking``.
        detailed: the suffix that the figures show; the strongest one if None.
    """
    result = detailed or strongest(report)
    text = [
        f"{report.plain.n} harmful prompts that {report.model} refuses, each plain, with each suffix, and with random "
        f"tokens of equal length. The top {len(report.top_heads)} heads ({', '.join(report.head_labels)}) were chosen "
        f"on {len(report.head_prompts)} other prompts.",
        *report.notes,
    ]
    items: list[Figure | Table | Widget] = [_summary(report)]
    if len(report.suffixes) > 1:
        items.append(
            Figure(
                "suffix-ranking",
                plots.plot_suffix_ranking(report),
                "Left: refusal metric under every suffix, lowest first. Right: the suffix's share of what the top "
                "heads write at the last position (dominance), against the share of instructions not refused.",
                n=f"{report.plain.n} prompts",
                control="benign and random suffixes",
            )
        )
    if result is not None:
        text += [f"{r.suffix.text.strip()!r}: {verdict(r).sentence}" for r in _ordered(report)]
        items += _details(report, result)
    if report.detectors is not None:
        items += _detector_items(report)
        text += [f"A detector fails here: {failure}." for failure in report.detectors.failures()]
    return Section("suffixes", "Suffixes under the microscope", tuple(text), tuple(items))


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


def _details(report: HijackingReport, result: SuffixResult) -> list[Figure | Table | Widget]:
    n = f"{report.plain.n} prompts"
    name = f"Suffix {result.suffix.text.strip()[:60]!r}. "
    rises = ", ".join(f"{label} {value:+.2f}" for label, value in result.strongest_rises())
    items: list[Figure | Table | Widget] = [
        Figure(
            "suffix-trace",
            plots.plot_suffix_trace(report, result),
            name + "Cosine with the direction by layer, at the last position and at the instruction's last token (is "
            "the harm still seen there?); band of one standard deviation; dotted: the layer of the direction.",
            n=n,
            control=RANDOM,
        ),
        Figure(
            "suffix-heads",
            plots.plot_suffix_heads(report, result),
            name + "What the top heads write along the direction at the last position, 95% intervals.",
            n=f"{n}, heads chosen on {len(report.head_prompts)} others",
            control=RANDOM,
        ),
        Figure(
            "suffix-attention",
            plots.plot_attention_regions(report, result),
            name + "Where the top heads look from the last position. Of all heads, attention to the suffix rises most "
            f"above random tokens in {rises}.",
            n=n,
            control=RANDOM,
        ),
        Figure(
            "suffix-attention-positions",
            plots.plot_attention_positions(report, result),
            name + "The same from every post-instruction position.",
            n=n,
            control=RANDOM,
        ),
        Figure(
            "suffix-split",
            plots.plot_split(report, result),
            name + "The drop of each head, split exactly into attention moved (weights) and values changed.",
            n=n,
            control="the drop counts from random tokens of equal length",
        ),
        Figure(
            "suffix-waterfall",
            plots.plot_drop_waterfall(report, result),
            name + "The drop of the projection from plain to suffixed, part by part.",
            n=n,
            data=report.drop_parts(result),
        ),
    ]
    if result.causal is not None:
        items.append(
            Figure(
                "suffix-causal",
                plots.plot_causal_tests(result.causal),
                name + "What each intervention on the suffixed run brings back of the refusal metric's drop (reverse: "
                "what it brings about in the clean run), 95% bootstrap intervals.",
                n=n,
                control="random heads of the same layers; random changes of equal norm",
                data=result.causal.to_frame(),
            )
        )
    if result.tokens is not None:
        items.append(
            Figure(
                "suffix-tokens",
                plots.plot_token_effects(result.tokens),
                name + "Above: refusal metric back when this token is left out. Below: what the top heads take from "
                "it along the direction.",
                n=f"{result.tokens.removed.shape[-1]} prompts",
                data=result.tokens.to_frame(),
            )
        )
    if len(result.patterns) == 2:
        for pattern, what, props in zip(
            result.patterns, ("plain", "suffixed"), plots.paired_attention(result.patterns), strict=True
        ):
            items.append(
                Widget(
                    f"suffix-pattern-{what}",
                    *props,
                    f"Attention of {pattern.labels[0]} on one prompt, {what}; tokens aligned, · where the plain prompt "
                    "has no token.",
                    n="1 prompt",
                )
            )
    return items


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
            plots.plot_roc(found),
            "Harmful prompts told from all harmless ones by the projection on the direction: at the last token, its "
            "maximum over the instruction's tokens, and both.",
            n=sizes,
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
