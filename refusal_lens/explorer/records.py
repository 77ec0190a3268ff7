"""What one look finds."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from ..attribution.token_records import AttentionPatterns, SourceContributions
from ..direction.map_records import ConversationMap
from ..records.base import Record
from ..records.labels import Head, head_label, index_of


@dataclass(frozen=True)
class Look(Record):
    """One request under every condition: plain, with a suffix, with random tokens in its place, under interventions and
    their placebos.

    Attributes:
        map: projection on r̂ of every token at every layer; ``map.conditions`` are those of the look.
        metric: refusal metric by condition, natural log-odds.
        sources: by condition, what each token writes along r̂ at the last token of the prompt, through every head.
        patterns: attention of ``head`` by condition, with what passes through it.
        head: the head that was picked.
        top_heads: those whose attention by region is shown.
        control: the random tokens, as many as the suffix has; "" without a suffix.
        threshold: prompts with a higher metric count as refused.
        replies: greedy replies by condition; empty where none were asked for.
        notes: controls that could not be made, and why.
    """

    map: ConversationMap
    metric: dict[str, float]
    sources: dict[str, SourceContributions]
    patterns: dict[str, AttentionPatterns]
    head: Head
    top_heads: tuple[Head, ...]
    control: str = ""
    threshold: float = 0.0
    replies: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def conditions(self) -> tuple[str, ...]:
        """ "baseline", "adversarial" and "random_suffix" with a suffix, then the interventions and their placebos."""
        return self.map.conditions

    @property
    def request(self) -> str:
        """The request."""
        return self.map.prompt

    @property
    def suffix(self) -> str:
        """What stands after the request in all conditions but the plain one and that of the random suffix."""
        return self.map.suffix

    @property
    def changed(self) -> str:
        """The condition shown beside the plain one: the last intervention, else the suffix, else itself."""
        others = [name for name in self.conditions if not name.startswith("random_") and name != "baseline"]
        return others[-1] if others else "baseline"

    def suffix_of(self, condition: str) -> str:
        """What stands after the request in a condition.

        Raises:
            LabelError: there is no such condition.
        """
        index_of(self.conditions, condition, "condition", "the look")
        return {"baseline": "", "random_suffix": self.control}.get(condition, self.suffix)

    def to_frame(self) -> pd.DataFrame:
        """One row per condition: refusal metric, what ``head`` writes along r̂ at the last token, and the reply."""
        label, rows = f"{head_label(*self.head)}_along", []
        for name in self.conditions:
            metric, along = self.metric[name], float(self.sources[name].values[(*self.head, 0)].sum())
            row = {"condition": name, "refusal_metric": metric, "refused_by_metric": metric > self.threshold}
            rows.append(row | {label: along, "reply": self.replies.get(name, "")})
        return pd.DataFrame(rows)
