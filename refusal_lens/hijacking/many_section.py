"""Many suffixes: their section of the page."""

from collections.abc import Iterator

from ..report.page import Figure, Item, Section, Table
from .many_figures import plot_recurrence
from .many_records import BY, ManySuffixes
from .section import RANDOM

MOST = 5  # suffixes of which the sentence is in the text


def many_section(many: ManySuffixes) -> Section:
    """How strong each suffix is and why the top heads turn to it, recurring heads, clusters, dominance."""
    frame, n = many.to_frame(), f"{len(many.suffixes)} suffixes x {many.metric.shape[1]} prompts"
    order = frame["metric_drop"].sort_values(ascending=False).index.tolist()
    text = [
        f"{n}, all refused without a suffix; each suffix beside {RANDOM}. {len(many.attacks)} are meant to stop "
        f"refusals, {len(many.controls)} are controls (benign or random).",
        *many.notes,
        *(f"{many.suffixes[i].text.strip()!r}: {many.sentence(i)}" for i in order[:MOST]),
        many.agreement(),
    ]
    caption = (
        "Left: how far each suffix lowers the refusal metric below random tokens against the share of prompts not "
        "refused with it, 95% intervals over prompts. Right: the top heads' change of attention to the suffix, split "
        "into the parts of the query, the suffix's keys and the template's keys (Shapley values; they add up)."
    )
    items: list[Item] = [Figure("many-suffixes", many.plot(), caption, n, RANDOM, frame), *_recurrence(many)]
    if (found := many.clusters()) is not None:
        caption = (
            "Which heads turn to a suffix, and why: cosine between two suffixes' causes of every head's change of "
            f"attention. Clusters by average linkage; silhouette {found.silhouette:.2f}, with entries shuffled over "
            f"suffixes {found.chance.mean:.2f} [{found.chance.low:.2f}, {found.chance.high:.2f}] (p = {found.p:.2g})."
        )
        table = many.cluster_frame()
        items.append(Figure("many-clusters", many.plot("clusters"), caption, n, "shuffled profiles", table))
        rows = tuple(tuple(f"{x:.3f}" if isinstance(x, float) else str(x) for x in row) for row in table.to_numpy())
        names = tuple(map(str, table.columns))
        items.append(Table("many-cluster-table", names, rows, "Clusters and typical suffixes.", data=table))
    beside = many.beside_dominance()
    if len(beside):
        caption = (
            "Spearman's correlation over suffixes, with bootstrap intervals, of each measure with the dominance "
            "score: the suffix's share of what the top heads write at the last position (Ben-Tov et al. 2025)."
        )
        control = "benign and random suffixes are among them"
        items.append(Figure("many-dominance", many.plot("beside dominance"), caption, n, control, beside))
    return Section("many-suffixes", "Many suffixes", tuple(text), tuple(items))


def _recurrence(many: ManySuffixes) -> Iterator[Figure]:
    for by, what in zip(BY, ("attention gained", "write along r̂ lost"), strict=True):
        if many.overlaps(by):
            caption = (
                f"Left: shared part of two suffixes' top {len(many.top_heads)} heads by {what}, "
                "with 95% intervals over suffixes, beside heads permuted within their layers. Right: the heads that "
                "recur most, in attacks and in controls."
            )
            n, frame = f"{len(many.suffixes)} suffixes", many.recurring(by)
            yield Figure(f"many-{by}", plot_recurrence(many, by), caption, n, "random heads; benign suffixes", frame)
