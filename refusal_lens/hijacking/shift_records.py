"""Why attention moves: results of ``attention_shift``."""

from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..records.base import Record
from ..records.labels import Head, head_label, index_of
from ..report.claims import NOT_SHOWN, grade, percent
from ..stats import Interval, columns, fraction_interval, mean_interval

TARGETS = ("instruction", "suffix")
PLAYERS = ("query", "suffix keys", "template keys")
FROM_PLAIN = ("query", "distance", "suffix keys", "template keys")
SIDES = ("query", "keys")


@dataclass(frozen=True)
class AttentionShift(
    Record,
    axes={
        "target": TARGETS,
        "player": PLAYERS,
        "plain_player": FROM_PLAIN,
        "side": SIDES,
        "receiver": "receiver_labels",
        "sender": "senders",
    },
    also=("change", "interaction"),
):
    """Each head's attention from one position with a suffix, minus that with random tokens of equal length, by cause.

    Attributes:
        parts: Shapley values of the query, of the suffix's keys and of the template's keys after it; they add up to the
            change of attention on the target (the instruction, or the suffix's tokens).
        alone: the change when only one of the three is taken from the suffixed run.
        from_plain: the same parts of the change from the plain run, where the instruction also lies farther away; None
            where they were not measured.
        receivers: the heads whose scores are split, chosen on ``n_chosen`` other prompts.
        edges: by head, the mean part of its change that a sender makes through the query or through the keys after the
            instruction; all senders and both sides add up to the change.
        spread: standard deviation of ``edges`` over prompts.
        named, named_on_instruction: the edges that make the largest parts of the changes on the suffix and on the
            instruction, on the other prompts, as (side, receiver, sender).
        gained: attention that each token of the suffix gains over the random token in its place; suffixes are aligned
            at their ends.
        taken: the part of the change on the instruction that goes through the token's score.
        causality: largest change of keys and values before the suffix, relative to their size; 0 but for rounding, and
            a note says where it is more.
        scores_error: largest difference of the recomputed scores and weights from the model's own, scores relative to
            the largest |q| |k|.
        sums_error: largest difference of the sum over all senders from the change.
        hidden: layers whose window hides the instruction from the position.
        notes: what could not be measured, in words.
        tokens: text of the suffix's tokens, as they follow the first prompt.
    """

    parts: Float[Tensor, "player target layer head prompt"]
    alone: Float[Tensor, "player target layer head prompt"]
    from_plain: Float[Tensor, "plain_player target layer head prompt"] | None
    receivers: tuple[Head, ...]
    edges: Float[Tensor, "side target receiver sender"]
    spread: Float[Tensor, "side target receiver sender"]
    named: tuple[tuple[int, int, int], ...]
    gained: Float[Tensor, "receiver token prompt"]
    taken: Float[Tensor, "receiver token prompt"]
    tokens: tuple[str, ...]
    causality: float
    scores_error: float
    sums_error: float
    n_chosen: int = 0
    hidden: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    named_on_instruction: tuple[tuple[int, int, int], ...] = ()

    @property
    def change(self) -> Float[Tensor, "target layer head prompt"]:
        """Attention with the suffix minus attention with random tokens."""
        return self.parts.sum(0)

    @property
    def interaction(self) -> Float[Tensor, "target layer head prompt"]:
        """What the three change together beyond what each changes alone."""
        return self.change - self.alone.sum(0)

    @property
    def receiver_labels(self) -> tuple[str, ...]:
        """``L12H7`` of the receivers."""
        return tuple(head_label(*head) for head in self.receivers)

    @property
    def senders(self) -> tuple[str, ...]:
        """Labels of what writes the scores: embedding, heads, MLPs, biases, and the change of norms' scales."""
        layers, heads = (range(n) for n in self.parts.shape[2:4])
        names = [head_label(layer, head) for layer in layers for head in heads]
        every = ("embedding", *names, *(f"L{layer} MLP" for layer in layers), "biases", "norms")
        return every if self.edges.shape[-1] else ()

    def part(self, player: str, head: Head, target: str = "suffix") -> Interval:
        """One player's part of one head's change, mean over prompts.

        Raises:
            LabelError: no such player or target.
        """
        i, j = index_of(PLAYERS, player, "player", "AttentionShift"), index_of(TARGETS, target, "target", "a shift")
        return mean_interval(self.parts[i, j][head].tolist())

    def to_frame(self, target: str = "suffix") -> pd.DataFrame:
        """One row per receiver: change, each player's part with its interval, interaction, n."""
        j, rows = index_of(TARGETS, target, "target", "AttentionShift"), []
        for head, label in zip(self.receivers, self.receiver_labels, strict=True):
            row = {"head": label, **columns(mean_interval(self.change[j][head].tolist()), "change")}
            for player in PLAYERS:
                row |= columns(self.part(player, head, target), player, f"{player} ")
            n = self.parts.shape[-1]
            rows.append(row | {"interaction": float(self.interaction[j][head].mean()), "n": n})
        return pd.DataFrame(rows)

    def compositions(self, target: str = "suffix") -> pd.DataFrame:
        """The named edges, as "L5H3 -> query of L14H7": size in attention, share of the head's change, interval, n.

        The interval is mean ± 1.96 standard errors over prompts.
        """
        j, n, rows = index_of(TARGETS, target, "target", "AttentionShift"), self.parts.shape[-1], []
        named = self.named if target == "suffix" else self.named_on_instruction or self.named
        for side, receiver, sender in named:
            place = (side, j, receiver, sender)
            value, error = float(self.edges[place]), 1.96 * float(self.spread[place]) / n**0.5
            whole = float(self.change[j][self.receivers[receiver]].mean())
            label = f"{self.senders[sender]} -> {SIDES[side]} of {self.receiver_labels[receiver]}"
            share = value / whole if whole else float("nan")
            found = {"path": label, "part": value, "low": value - error, "high": value + error}
            rows.append(found | {"share": share, "n": n})
        return pd.DataFrame(rows)

    def sentence(self, target: str = "suffix") -> str:
        """The head whose attention on the target changes most, its causes, the largest path and token."""
        j = index_of(TARGETS, target, "target", "AttentionShift")
        if not self.receivers:
            return ""
        i = max(range(len(self.receivers)), key=lambda i: abs(float(self.change[j][self.receivers[i]].mean())))
        head, whole = self.receivers[i], mean_interval(self.change[j][self.receivers[i]].tolist())
        causes = ", ".join(f"{player} {self.part(player, head, target).mean:+.2f}" for player in PLAYERS)
        said = f"{self.receiver_labels[i]}'s attention on the {target} changes by {whole.mean:+.2f} "
        said += f"[{whole.low:+.2f}, {whole.high:+.2f}] relative to random tokens: {causes}"
        rows = self.compositions(target).to_dict("records")
        if paths := [row for row in rows if row["path"].endswith(f" of {head_label(*head)}")]:
            said += f"; its largest path is {paths[0]['path']} ({paths[0]['part']:+.2f})"
        gains = self.gained[i].mean(-1)
        if target == "suffix" and len(gains) and float(gains.max()) > 0:
            said += f", and {self.tokens[int(gains.argmax())]!r} gains most ({float(gains.max()):+.2f})"
        return said + "."

    def competitors(self) -> pd.DataFrame:
        """One row per receiver and token of the suffix: attention gained, instruction's attention taken, n."""
        n, rows = self.parts.shape[-1], []
        for label, gained, taken in zip(self.receiver_labels, self.gained, self.taken, strict=True):
            for i, token in enumerate(self.tokens):
                row = {"head": label, "position": i, "token": token}
                row |= columns(mean_interval(gained[i].tolist()), "gained")
                rows.append(row | {"on the instruction": float(taken[i].mean()), "n": n})
        return pd.DataFrame(rows)


def largest_edges(edges: Float[Tensor, "side receiver sender"], n: int) -> tuple[tuple[int, int, int], ...]:
    """The ``n`` edges of largest size, largest first."""
    order = edges.abs().flatten().argsort(descending=True)[:n]
    return tuple(zip(*(x.tolist() for x in torch.unravel_index(order, edges.shape)), strict=True))  # type: ignore[arg-type]


def shown_causes(parts: Float[Tensor, "player prompt"]) -> dict[str, Interval]:
    """Causes that make a share of a rise of attention whose interval lies above 0; none where it doesn't rise."""
    whole = parts.sum(0).tolist()
    if not mean_interval(whole).low > 0:
        return {}
    shares = {name: fraction_interval(part.tolist(), whole) for name, part in zip(PLAYERS, parts, strict=True)}
    return {name: share for name, share in shares.items() if grade(share) != NOT_SHOWN}


def explained(parts: Float[Tensor, "player prompt"], heads: str) -> str:
    """Say which causes explain that the attention of ``heads`` on a suffix rises, graded; or that none does."""
    whole, shares = mean_interval(parts.sum(0).tolist()), shown_causes(parts)
    number = f"{whole.mean:+.3f} [{whole.low:+.3f}, {whole.high:+.3f}] relative to random tokens"
    if not whole.low > 0:
        return f"the attention of {heads} on it is not shown to rise ({number}), so no part of the split explains it"
    if not shares:
        return f"no part of the split is shown to explain that the attention of {heads} on it rises ({number})"
    said = (f"the {name} {percent(share)} of that ({grade(share)})" for name, share in shares.items())
    return f"the attention of {heads} on it rises by {number}, explained by {', '.join(said)}"
