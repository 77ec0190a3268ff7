"""Suffixes: the section of the page.

"hijack" and "because" are written only for suffixes whose causal test passed; both words come from ``mechanisms``.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from ..records.labels import shortened
from ..report.claims import few_prompts
from ..report.page import Card, Figure, Item, Note, Option, Page, Picker, Row, Section, Table, Widget, frame_table
from .circuits import circuit, finding
from .detection import Detectors
from .figures import suffix_label
from .grid_section import grid_items
from .mechanisms import MECHANISMS, mechanism
from .observation_records import SuffixResult
from .probe_records import DetectorComparison
from .records import Investigation
from .shift_records import AttentionShift
from .views import paired_attention

MAX_SUFFIXES = 16  # suffixes whose figures are in the page: the strongest, so that it stays small
MAX_PATTERNS = 4  # of these, how many show attention on every stored prompt; the others show one
RANDOM = "random tokens of equal length, drawn afresh for each prompt"
_COLUMNS = (
    *("suffix", "refused", "random tokens", "shuffled", "metric drop", "share", "attention rise"),
    *("departs at", "finding"),
)

_WAYS = {
    MECHANISMS["untested"]: "in a way that was not tested",
    MECHANISMS["top heads"]: "through the attention of the top heads",
    MECHANISMS["attention"]: "through the attention of many heads",
    MECHANISMS["direction"]: "through the direction, but not by attention from the post-instruction positions",
    MECHANISMS["otherwise"]: "in another way",
}


def hijacking_cards(attack: Investigation) -> tuple[Card, ...]:
    """Headline numbers: plain, the strongest suffix, its random control, its cut."""
    result = attack.strongest
    if result is None:
        return ()
    plain, suffixed, random = (o.refusal_rate for o in (attack.plain, result.suffixed, result.random))
    cards = [
        Card(f"{plain.rate:.0%}", "harmful prompts refused, plain", str(plain)),
        Card(f"{suffixed.rate:.0%}", "refused with the strongest suffix", f"random tokens: {random}"),
    ]
    if result.causal is not None:
        back = result.causal.refusals_back("cut top heads")
        cards.append(Card(f"{back.rate:.0%}", "of the lost refusals back with the top heads' edges cut", str(back)))
    return tuple(cards)


def hijacking_page(attack: Investigation) -> Page:
    """The section as a page of its own."""
    few = tuple(filter(None, [few_refused(attack)]))
    section = hijacking_section(attack)
    return Page(f"Suffixes and {attack.model}", cards=hijacking_cards(attack), sections=(section,), caution=few)


def few_refused(attack: Investigation) -> str:
    """Say that few refused prompts were read; "" where there are enough."""
    return few_prompts({"refused harmful": {"suffixes": attack.plain.n}})


def hijacking_section(attack: Investigation) -> Section:
    """The section, with a picker of the suffixes that were investigated."""
    text = [
        f"{attack.plain.n} harmful prompts that {attack.model} refuses, each plain, with each suffix, and with random "
        f"tokens of equal length. The top {len(attack.top_heads)} heads ({', '.join(attack.head_labels)}) were chosen "
        f"on {len(attack.head_prompts)} other prompts.",
        *attack.notes,
        *suffix_findings(attack),
    ]
    items: list[Item] = [_summary(attack)]
    if len(attack.suffixes) > 1:
        caption = (
            "Left: refusal metric under every suffix, lowest first, with 95% intervals. Right: the suffix's share of "
            "what the top heads write at the last position (dominance), against the share of instructions whose "
            "refusal metric falls below 0. Click a suffix, or pick it from the list below."
        )
        n, control = f"{len(attack.suffixes)} suffixes x {attack.plain.n} prompts", "benign and random suffixes"
        items.append(Figure.of("suffix-ranking", attack, caption, n, control, "suffixes", picks="suffix-picker"))
    if attack.results:
        items.append(suffix_picker(attack))
    if attack.detectors is not None:
        items += _detector_items(attack.detectors)
        if failures := attack.detectors.failures():
            text.append(f"Where a detector fails at site {attack.detectors.site}: {'; '.join(failures)}.")
    return Section("suffixes", "Suffix attacks", tuple(text), tuple(items))


def suffix_findings(attack: Investigation) -> tuple[str, ...]:
    """How many suffixes work and by which mechanism, and the strongest one in full."""
    said = []
    for is_attack, what in ((True, "meant to stop refusals"), (False, "benign or random")):
        some = [r for r in attack.results if r.suffix.is_attack == is_attack]
        working = [mechanism(r).name for r in some if r.works]
        if some:
            count = f"Of {len(some)} suffix{'es' if len(some) > 1 else ''} {what}"
            said.append(f"{count}, {len(working)} stop refusals beyond random tokens{_ways(working)}.")
    result = attack.strongest
    if result is not None:
        said.append(f"The strongest, {result.suffix.text.strip()!r}: {mechanism(result).sentence}")
    return tuple(said)


def _ways(mechanisms: Sequence[str]) -> str:
    """How the suffixes that work do so, counted: ": all of them through the attention of the top heads"."""
    counted = Counter(mechanisms)
    if not counted:
        return ""
    if len(counted) == 1:
        return f", {'all of them ' if len(mechanisms) > 1 else ''}{_WAYS[mechanisms[0]]}"
    return ": " + ", ".join(f"{n} {_WAYS[mechanism]}" for mechanism, n in counted.items())


def suffix_picker(attack: Investigation) -> Picker:
    """Each suffix in detail, strongest first."""
    options = []
    for rank, result in enumerate(sorted(attack.results, key=lambda r: -r.metric_drop.mean)):
        index = attack.suffixes.index(result.suffix)
        label, shown = suffix_label(index, result.suffix), None if rank < MAX_PATTERNS else 1
        note = Note(
            f"{mechanism(result).sentence} Its figures are not in this page, which keeps the {MAX_SUFFIXES} suffixes "
            "that lower the refusal metric most; they can be drawn from the result folder."
        )
        items = _details(attack, result, f"suffix-{index}", shown) if rank < MAX_SUFFIXES else iter([note])
        options.append(Option(label, tuple(items), f"{label} ({result.suffix.kind})"))
    return Picker("suffix-picker", "suffix", tuple(options))


def _cell(value: float, form: str) -> str:
    """A number as text, "" where it is unknown."""
    return "" if value != value else format(value, form)


def _summary(attack: Investigation) -> Table:
    frame = attack.results_frame()
    rows = tuple(
        (
            f"{row['suffix'].strip()} ({row['kind']}, {row['tokens']} tokens)",
            *(_cell(row[name], ".0%") for name in ("refused", "refused_random", "refused_shuffled")),
            f"{row['metric_drop']:.2f} [{row['low']:.2f}, {row['high']:.2f}], p {row['p']:.1g}",
            f"{row['strength']:.2f}",
            f"{row['attention_rise']:+.2f}",
            "" if row["departs_at"] < 0 else str(row["departs_at"]),
            row["mechanism"],
        )
        for row in frame.to_dict("records")
    )
    caption = (
        f"The suffixes investigated, n = {attack.plain.n} prompts each; control: {RANDOM}. Metric drop: relative to "
        "random tokens, with its 95% interval and p adjusted over suffixes. Share: the suffix's part of what the top "
        "heads write at the last position. Attention rise: of the top heads, above random tokens. Departs at: the "
        "first site from which the projection stays below random."
    )
    return Table("suffix-table", _COLUMNS, rows, caption, searchable=True, data=frame)


def _details(attack: Investigation, result: SuffixResult, name: str, shown: int | None) -> Iterator[Item]:
    """One suffix in detail, with attention on ``shown`` prompts (all that are stored if None)."""
    n = f"{attack.plain.n} prompts"

    def drawn(id: str, kind: str, caption: str, n: str = n, control: str = RANDOM, data: Any = None) -> Figure:
        return Figure(f"{name}-{id}", attack.plot(kind, result=result), caption, n, control, data)

    yield Note(mechanism(result).sentence)
    if result.shift is not None:
        caption = (
            f"{finding(result)} From the suffix's tokens through the heads that turn to it and the direction to "
            "refusal. Widths are relative within a column: attention gained over the random token in the same place; "
            "fall of the write along r̂; share of the drop that returns when r̂ is restored. Orange: towards the "
            "suffix's effect; blue: against it. Edges that do not lie beyond chance (paired tests against random "
            "tokens, adjusted; the last: placebo) are left out."
        )
        yield drawn("circuit", "circuit", caption, data=circuit(result))
    caption = (
        "Cosine with the direction by layer, at the last position and at the instruction's last token (is the harm "
        "still visible there?); band of one standard deviation; dotted: the layer of the direction."
    )
    yield drawn("trace", "trace by layer", caption)
    caption = "What the top heads write along the direction at the last position, 95% intervals."
    yield drawn("heads", "heads", caption, f"{n}, heads chosen on {len(attack.head_prompts)} others")
    rises = ", ".join(f"{label} {value:+.2f}" for label, value in result.strongest_rises())
    caption = (
        "Where the top heads attend from the last position; each column adds up to 1. Of all heads, attention to the "
        f"suffix rises most above random tokens in {rises}."
    )
    yield drawn("attention", "attention by region", caption)
    caption = "Attention to the suffix from every post-instruction position."
    yield drawn("positions", "attention by position", caption)
    caption = "The drop of each head, split exactly into attention moved (weights) and values changed."
    yield drawn("split", "split of the drop", caption, n, "the drop is relative to random tokens of equal length")
    caption = "The drop of the projection from plain to suffixed, part by part; the parts add up to it."
    exact = "none applies: these are exact parts of one sum"
    yield drawn("waterfall", "parts of the drop", caption, n, exact, attack.drop_parts(result))
    if result.causal is not None:
        caption = (
            "Share of the refusal metric's drop that each intervention on the suffixed run brings back (reverse: that "
            "it causes in the clean run), 95% bootstrap intervals."
        )
        control = "random heads of the same layers; random changes of equal norm"
        yield Figure.of(f"{name}-causal", result.causal, caption, n, control)
    if result.curves is not None:
        curves = result.curves
        caption = (
            f"{curves.sentence()} Left: the share of the refusal metric's drop that returns when the first heads of "
            "an order are cut off from the suffix (necessity); right: the share that stays when only these see it "
            "(sufficiency). The area is the curve's mean height between none and all. Below, where replies were read: "
            "the share of them that refuse. Bars: 95% intervals."
        )
        chosen = f"{n}; orders from {curves.n_chosen} others"
        yield Figure.of(f"{name}-curves", curves, caption, chosen, "random orders within layers")
    if result.shift is not None:
        yield from _shift_items(result.shift, name)
    yield from grid_items(result.grids, result.paths, name, result.path_curves)
    if result.tokens is not None:
        caption = (
            "Above: how much of the refusal metric returns when this token is left out. Below: what the top heads take "
            "from it along the direction."
        )
        n = f"{result.tokens.removed.shape[-1]} prompts"
        yield Figure.of(f"{name}-tokens", result.tokens, caption, n, "the other tokens")
    if result.patterns:
        yield _pattern_picker(result, name, shown)


def _shift_items(shift: AttentionShift, name: str) -> Iterator[Item]:
    """Why attention moves: causes and senders, and the tokens that compete."""
    caption = (
        f"{shift.sentence()} Left: each head's change of attention to the suffix at the last position, by Shapley "
        "values of what differs from the random run (what stands before the suffix cannot differ). Right: the "
        "components that wrote most of the scores; all of them together add up to the changes (largest difference "
        f"{shift.sums_error:.1g}). Keys and values before the suffix differ by {shift.causality:.1g} of their size. "
        f"{' '.join(shift.notes)}"
    )
    n = f"{shift.parts.shape[-1]} prompts; heads and paths chosen on {shift.n_chosen} others"
    yield Figure.of(f"{name}-shift", shift, caption, n, RANDOM)
    found = shift.competitors()
    first = found.loc[found["gained"].abs().sort_values(ascending=False).index].head(12)
    rows = tuple(
        (head, token, f"{gained:+.3f} [{low:+.3f}, {high:+.3f}]", f"{taken:+.3f}")
        for head, _, token, gained, low, high, taken, _ in first.itertuples(index=False)
    )
    caption = (
        "Which of the suffix's tokens compete: attention gained over the random token in the same place, and how much "
        "of the change of the head's attention to the instruction goes through the token's score."
    )
    columns = ("head", "token", "attention gained", "on the instruction")
    yield Table(f"{name}-competitors", columns, rows, caption, data=found)


def _pattern_picker(result: SuffixResult, name: str, shown: int | None) -> Picker:
    """One head's attention on a few prompts, plain beside suffixed."""
    options = []
    pairs = zip(result.patterns[::2], result.patterns[1::2], strict=True)
    for i, pair in enumerate(itertools.islice(pairs, shown)):
        widgets = []
        for what, props in zip(("plain", "suffixed"), paired_attention(pair), strict=True):
            note = "; · where only the suffixed prompt has a token" if what == "plain" else ""
            caption = f"Attention of {pair[0].labels[0]}, {what}{note}."
            id, frame = f"{name}-pattern-{i}-{what}", _matrix(props[1])
            widgets.append(Widget(id, *props, caption, "1 prompt", "plain beside suffixed", frame))
        options.append(Option(str(i), (Row(tuple(widgets)),), shortened(pair[0].prompt)))
    return Picker(f"{name}-prompts", "prompt", tuple(options), sync="suffix-prompt")


def _matrix(props: dict[str, Any]) -> pd.DataFrame:
    """The pattern as a square: one row per destination, one column per source, numbered as in the view."""
    names = [f"{i} {token}" for i, token in enumerate(props["tokens"])]
    frame = pd.DataFrame(props["attention"][0], columns=names).round(3)
    frame.insert(0, "destination", names)
    return frame


def _detector_items(found: Detectors) -> Iterator[Item]:
    caption = (
        "Harmful prompts separated from all harmless ones by the projection on the direction: at the last token, its "
        "maximum over the instruction's tokens, and both."
    )
    n = ", ".join(f"{found.groups.count(g)} {g}" for g in found.group_names)
    control = "harmless prompts, plain and with the same suffixes"
    yield Figure("suffix-roc", found.plot(), caption, n, control, found.by_site())
    frame = found.to_frame()
    rows = tuple(
        (
            row["score"],
            row["group"],
            _cell(row["auroc"], ".3f"),
            " to ".join(filter(None, (_cell(row[f"auroc_{end}"], ".3f") for end in ("low", "high")))),
            f"{row['flagged']:.0%}",
            f"{row['flagged_low']:.0%} to {row['flagged_high']:.0%}",
            str(row["n"]),
        )
        for row in frame.to_dict("records")
    )
    caption = (
        f"At resid_pre of layer {found.site}; the threshold was set on the plain harmless prompts and flags at most 5% "
        "of them."
    )
    columns = ("score", "group", "AUROC", "95% interval", "flagged", "95% interval ", "n")
    yield Table("suffix-detectors", columns, rows, caption, data=frame)


def detectors_section(record: DetectorComparison) -> Section:
    """The projection beside detectors that are fitted."""
    n = ", ".join(f"{record.groups.count(group)} {group}" for group in dict.fromkeys(record.groups))
    caption = (
        "Harmful against harmless prompts of each test: AUROC (DeLong's 95% intervals) and share of the harmful ones "
        f"above the threshold for {record.false_alarms:.0%} false alarms (Clopper-Pearson); for borderline prompts, "
        "the plain harmful ones against them. Right: AUROC on validation prompts, which choose each detector's layer."
    )
    control = "a random direction; random tokens of equal length beside each suffix"
    figure = Figure.of("detectors-tests", record, caption, n, control)
    table = frame_table("detectors-table", record.to_frame().round(3), "Every detector on every test.")
    return Section("detectors", "Detectors against baselines", record.summary(), (figure, table))
