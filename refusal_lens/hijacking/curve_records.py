"""How many heads a suffix needs, and how much of its effect stays with attention held: results of ``head_curves``."""

from dataclasses import dataclass

import pandas as pd
from jaxtyping import Bool, Float
from torch import Tensor

from ..records.base import Record
from ..records.labels import Head, head_label, index_of
from ..report.claims import MOST, percent
from ..stats import Interval, Rate, columns, fraction_interval, rate
from .causal_records import CausalTest

ORDERS = ("attribution", "greedy")
WAYS = ("cut", "only")  # edges of the first heads cut (necessity); edges of all other heads cut (sufficiency)


@dataclass(frozen=True)
class HeadCurves(Record, axes={"way": WAYS, "order": "orders", "count": "counts"}):
    """The refusal metric against the number of heads whose edges to the suffix are cut.

    Attributes:
        counts: numbers of heads.
        metric: "cut" with the first heads of an order cut off from the suffix, "only" with all heads but these; the
            orders after ``ORDERS`` are random ones within layers.
        rankings: the heads by attribution and by greedy choice, both found on ``n_chosen`` other prompts.
        plain, random, suffixed: the metric without an intervention.
        held: the suffixed run with every head's attention at the post-instruction positions held as in the plain run.
        held_random: held as in the run with random tokens, key by key.
        threshold: prompts with a higher metric count as refused.
        reply_counts: numbers of heads at which replies were read, by attribution and in the first random order.
        replied: whether each reply to the first prompts has a refusal phrase; None if none were generated.
    """

    counts: tuple[int, ...]
    metric: Float[Tensor, "way order count prompt"]
    rankings: tuple[tuple[Head, ...], ...]
    plain: Float[Tensor, "prompt"]
    random: Float[Tensor, "prompt"]
    suffixed: Float[Tensor, "prompt"]
    held: CausalTest
    held_random: CausalTest
    n_chosen: int
    threshold: float = 0.0
    reply_counts: tuple[int, ...] = ()
    replied: Bool[Tensor, "way reply_order reply_count reply"] | None = None

    @property
    def orders(self) -> tuple[str, ...]:
        """``ORDERS``, then the random ones."""
        return (*ORDERS, *(f"random {i + 1}" for i in range(self.metric.shape[1] - len(ORDERS))))

    @property
    def reply_orders(self) -> tuple[str, ...]:
        """The orders in which replies were read: by attribution, and the first random one if there is one."""
        return ("attribution", "random 1")[: 0 if self.replied is None else self.replied.shape[1]]

    def _rows(self, way: str, order: str) -> Float[Tensor, "count prompt"]:
        grid = self.metric[index_of(WAYS, way, "way", "HeadCurves")]
        if order == "random":
            return grid[len(ORDERS) :].mean(0)
        return grid[index_of(self.orders, order, "order", "HeadCurves")]

    def _share(self, way: str, metric: Float[Tensor, "prompt"]) -> Interval:
        part = metric - self.suffixed if way == "cut" else self.plain - metric
        return fraction_interval(part.tolist(), (self.plain - self.suffixed).tolist())

    def share(self, way: str, order: str, count: int) -> Interval:
        """Share of the metric's drop from the plain run that returns with the heads cut, or that stays with them alone.

        Args:
            order: one of ``orders``, or "random" for their mean.

        Raises:
            LabelError: no such way, order or count.
        """
        return self._share(way, self._rows(way, order)[index_of(self.counts, count, "count", "HeadCurves")])

    def refusals(self, way: str, order: str, count: int) -> Rate:
        """Share of prompts above the threshold."""
        row = self._rows(way, order)[index_of(self.counts, count, "count", "HeadCurves")]
        return rate((row > self.threshold).tolist())

    def replies_refused(self, way: str, order: str, count: int) -> Rate:
        """Share of replies with a refusal phrase.

        Args:
            order: one of ``reply_orders``.
            count: one of ``reply_counts``.

        Raises:
            LabelError: no such way, order or count, or no replies.
        """
        i = index_of(self.reply_counts, count, "count with replies", "HeadCurves")
        assert self.replied is not None
        rows = self.replied[index_of(WAYS, way, "way", "HeadCurves")]
        return rate(rows[index_of(self.reply_orders, order, "order with replies", "HeadCurves"), i].tolist())

    def area(self, way: str, order: str) -> Interval:
        """Mean height of the curve over the counts between none and all, which double from one to the next."""
        return self._share(way, self._rows(way, order)[1:-1].mean(0))

    def needed(self, way: str = "cut", order: str = "attribution", least: float = MOST) -> int | None:
        """The smallest count at which the whole interval of the share reaches ``least``; None where no count does."""
        found = ((n, self.share(way, order, n)) for n in self.counts)
        return next((n for n, share in found if share.low >= least), None)

    def stays(self, run: str = "random") -> Interval:
        """Share of the suffix's effect that stays with attention held as in the ``random`` (or ``plain``) run: what
        does not need changed weights. The effect is the drop from that run."""
        test, before = (self.held_random, self.random) if run == "random" else (self.held, self.plain)
        return fraction_interval((before - test.metric).tolist(), (before - self.suffixed).tolist())

    def sentence(self) -> str:
        """How many heads are needed, and what held attention leaves."""
        cut, only = (self._fewest(way) for way in WAYS)
        first = f"cutting {cut} off from the suffix brings" if cut else "no number cut off from the suffix brings"
        said = ""
        if self.replied is not None:
            n, few = self.reply_counts[len(self.reply_counts) // 2], self.replied.shape[-1]
            shares = "; ".join(
                f"{order}: {percent(self.replies_refused('cut', order, n))}" for order in self.reply_orders
            )
            said = f" With the first {n} cut off, of {few} replies so many refuse, by order: {shares}."
        return (
            f"Fewest heads, of the numbers tried: {first} back most of the drop; leaving the suffix to "
            f"{only or 'no number'} keeps most of it. With attention held as in the random run {percent(self.stays())} "
            f"of the suffix's effect stays.{said}"
        )

    def _fewest(self, way: str) -> str:
        found = [(n, order) for order in ORDERS if (n := self.needed(way, order)) is not None]
        n, order = min(found, default=(0, ""))
        total = self.counts[-1]
        return "" if not found else f"all {total}" if n == total else f"{n} of {total} ({order} order)"

    def to_frame(self) -> pd.DataFrame:
        """One row per way, order and count: share with interval, refused, the next head, n."""
        rows = []
        for way in WAYS:
            for order in (*ORDERS, "random"):
                for n in self.counts:
                    last = "" if order == "random" or not n else head_label(*self.rankings[ORDERS.index(order)][n - 1])
                    row = {"way": way, "order": order, "heads": n, "last": last}
                    row |= columns(self.share(way, order, n), "share")
                    read = "random 1" if order == "random" else order
                    there = n in self.reply_counts and read in self.reply_orders
                    said = self.replies_refused(way, read, n) if there else rate([])
                    row |= {"refused": self.refusals(way, order, n).rate, "refused in replies": said.rate}
                    rows.append(row | {"replies": said.n, "n": len(self.plain)})
        return pd.DataFrame(rows)
