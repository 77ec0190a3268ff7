"""How many heads and compositions a suffix needs: results of ``head_curves`` and ``path_curves``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

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
class _Curves(Record):
    """The metric against a number, in several orders, and what follows from it."""

    counts: tuple[int, ...]
    metric: Float[Tensor, "way order count prompt"]
    random: Float[Tensor, "prompt"]
    suffixed: Float[Tensor, "prompt"]
    threshold: float = field(default=0.0, kw_only=True)

    unit: ClassVar[str] = "heads"
    named: ClassVar[tuple[str, ...]] = ORDERS  # orders that are not random
    inner: ClassVar[slice] = slice(1, -1)  # counts of the area

    @property
    def before(self) -> Float[Tensor, "prompt"]:
        """The metric of the run from which it drops."""
        return self.random

    @property
    def orders(self) -> tuple[str, ...]:
        """``named`` orders, then the random ones."""
        return (*self.named, *(f"random {i + 1}" for i in range(self.metric.shape[1] - len(self.named))))

    def _metric(self, way: str, order: str, count: int | None = None) -> Float[Tensor, "prompt"]:
        """At a count, or its mean over the counts of the area."""
        name = type(self).__name__
        grid = self.metric[index_of(WAYS, way, "way", name)]
        random = order == "random"
        rows = grid[len(self.named) :].mean(0) if random else grid[index_of(self.orders, order, "order", name)]
        return rows[self.inner].mean(0) if count is None else rows[index_of(self.counts, count, "count", name)]

    def _share(self, way: str, metric: Float[Tensor, "prompt"]) -> Interval:
        part = metric - self.suffixed if way == "cut" else self.before - metric
        return fraction_interval(part.tolist(), (self.before - self.suffixed).tolist())

    def share(self, way: str, order: str, count: int) -> Interval:
        """Share of the metric's drop that returns with the first ones cut ("cut"), or that is there with them alone
        ("only"). Heads: the drop from the plain run; compositions: from the run with random tokens.

        Args:
            order: one of ``orders``, or "random" for their mean.

        Raises:
            LabelError: no such way, order or count.
        """
        return self._share(way, self._metric(way, order, count))

    def refusals(self, way: str, order: str, count: int) -> Rate:
        """Share of prompts above the threshold."""
        return rate((self._metric(way, order, count) > self.threshold).tolist())

    def area(self, way: str, order: str) -> Interval:
        """Mean height of the curve over the counts after none, which double from one to the next. With all heads it is
        the same in every order, and does not count."""
        return self._share(way, self._metric(way, order))

    def needed(self, way: str = "cut", order: str = "attribution", least: float = MOST) -> int | None:
        """The smallest count at which the whole interval of the share reaches ``least``; None where no count does."""
        found = ((n, self.share(way, order, n)) for n in self.counts)
        return next((n for n, share in found if share.low >= least), None)

    def _fewest(self, way: str) -> str:
        found = [(n, order) for order in self.named if (n := self.needed(way, order)) is not None]
        n, order = min(found, default=(0, ""))
        total = self.counts[-1]
        return "" if not found else f"all {total}" if n == total else f"{n} of {total} ({order} order)"

    def _labels(self, order: str) -> Sequence[str]:
        """What is added, one after another."""
        raise NotImplementedError

    def _said(self, way: str, order: str, count: int) -> dict[str, object]:
        """More columns of the table."""
        return {}

    def to_frame(self) -> pd.DataFrame:
        """One row per way, order and count: share with interval, refused, the next head or composition, n."""
        rows = []
        for way in WAYS:
            for order in (*self.named, "random"):
                for n in self.counts:
                    last = "" if order == "random" or not n else self._labels(order)[n - 1]
                    row = {"way": way, "order": order, self.unit: n, "last": last}
                    row |= columns(self.share(way, order, n), "share")
                    row |= {"refused": self.refusals(way, order, n).rate, **self._said(way, order, n)}
                    rows.append(row | {"n": len(self.suffixed)})
        return pd.DataFrame(rows)


@dataclass(frozen=True)
class HeadCurves(_Curves, axes={"way": WAYS, "order": "orders", "count": "counts"}):
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

    rankings: tuple[tuple[Head, ...], ...]
    plain: Float[Tensor, "prompt"]
    held: CausalTest
    held_random: CausalTest
    n_chosen: int
    reply_counts: tuple[int, ...] = ()
    replied: Bool[Tensor, "way reply_order reply_count reply"] | None = None

    @property
    def before(self) -> Float[Tensor, "prompt"]:
        """The metric of the plain run."""
        return self.plain

    @property
    def reply_orders(self) -> tuple[str, ...]:
        """The orders in which replies were read: by attribution, and the first random one if there is one."""
        return ("attribution", "random 1")[: 0 if self.replied is None else self.replied.shape[1]]

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
            shares = (f"{order}: {percent(self.replies_refused('cut', order, n))}" for order in self.reply_orders)
            said = f" With the first {n} cut off, of {few} replies so many refuse, by order: {'; '.join(shares)}."
        return (
            f"Fewest heads, of the numbers tried: {first} back most of the drop; leaving the suffix to "
            f"{only or 'no number'} keeps most of it. With attention held as in the random run {percent(self.stays())} "
            f"of the suffix's effect stays.{said}"
        )

    def _labels(self, order: str) -> Sequence[str]:
        return [head_label(*head) for head in self.rankings[ORDERS.index(order)]]

    def _said(self, way: str, order: str, count: int) -> dict[str, object]:
        read = "random 1" if order == "random" else order
        there = count in self.reply_counts and read in self.reply_orders
        said = self.replies_refused(way, read, count) if there else rate([])
        return {"refused in replies": said.rate, "replies": said.n}


@dataclass(frozen=True)
class PathCurves(_Curves, axes={"way": WAYS, "order": "orders", "count": "counts"}):
    """The refusal metric against the number of compositions that carry the other run's writes at once.

    Attributes:
        counts: numbers of compositions.
        metric: "cut" in the suffixed run, where the first compositions carry the random run's writes; "only" in the
            random run, where they carry the suffixed run's. First by attribution, then in random orders: the same
            receivers with other senders.
        random, suffixed: the metric of both runs as they are.
        paths: as "L5H3 -> query of L14H7", by attribution.
        threshold: prompts with a higher metric count as refused.
        notes: compositions that are no path, in words.
    """

    paths: tuple[str, ...]
    notes: tuple[str, ...] = ()

    unit = "compositions"
    named = ORDERS[:1]
    inner = slice(1, None)

    def sentence(self) -> str:
        """What all compositions bring back and make, beside random senders, and how many are enough."""
        n = self.counts[-1]
        if not n:
            return "No composition was cut."
        cut, only = (
            f"{percent(self.share(way, 'attribution', n))} (random senders {percent(self.share(way, 'random', n))})"
            for way in WAYS
        )
        few = [self._fewest(way) or "no number" for way in WAYS]
        return (
            f"With the {n} compositions cut, {cut} of the metric's drop from random tokens returns; in the random run "
            f"they alone make {only}. Fewest that reach most of it: {few[0]} cut, {few[1]} alone."
        )

    def _labels(self, order: str) -> Sequence[str]:
        return self.paths
