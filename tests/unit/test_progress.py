"""Progress as events, and the short table of findings."""

from __future__ import annotations

import dataclasses
import io
import re

import pytest
from rich.console import Console

from refusal_lens.cli.run import findings
from refusal_lens.progress import as_events, silent, together
from refusal_lens.stats import rate


def test_stages_are_told_with_what_is_left():
    events = []
    with as_events(events.append, every=0)("answer", 10) as advance:
        advance(2)
        advance(8)
    assert [e["event"] for e in events] == ["stage", "progress", "progress", "stage_end"]
    assert [e["done"] for e in events[1:3]] == [2, 10] and events[2]["remaining_seconds"] == 0
    assert events[1]["remaining_seconds"] == pytest.approx(4 * events[1]["seconds"], abs=0.1)


def test_progress_is_told_now_and_then_only():
    events = []
    with as_events(events.append, every=60)("answer", 1000) as advance:
        for _ in range(1000):
            advance(1)
    assert [e["event"] for e in events] == ["stage", "stage_end"]


def test_a_stage_of_unknown_length_and_one_that_fails():
    events = []
    with pytest.raises(ValueError), as_events(events.append, every=0)("load", 0) as advance:
        advance(1)
        raise ValueError
    assert [e["event"] for e in events] == ["stage", "progress", "stage_failed"]
    assert events[1]["remaining_seconds"] is None


def test_together_steps_all_of_them():
    left, right = [], []
    with together(as_events(left.append, 0), silent, as_events(right.append, 0))("x", 2) as advance:
        advance(1)
    assert [e["event"] for e in left] == [e["event"] for e in right] == ["stage", "progress", "stage_end"]


def summary(ablated: float) -> dict:
    def found(share: float) -> dict:
        return dataclasses.asdict(rate([i < share * 50 for i in range(50)]))

    return {
        "model": "m",
        "direction": {"pos": -1, "layer": 3, "relaxed": ""},
        "scores": {"bypass": -1.0, "induce": 1.0, "kl": 0.01},
        "refusal": {
            "harmful": {"baseline": found(1), "ablation": found(ablated), "random_ablation": found(1)},
            "harmless": {"baseline": found(0), "addition": found(1), "random_addition": found(0)},
        },
    }


@pytest.mark.parametrize(
    ("ablated", "word"),
    [(0.0, "most of it"), (0.7, "part of it"), (0.98, "not shown")],
)
def test_the_findings_say_whether_an_effect_is_shown(ablated, word):
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(findings(summary(ablated)))
    text = " ".join(console.export_text().split())
    assert re.search(rf"necessary: \d+% \[[^:]*: [^:]*\): {word}\. sufficient: 100% ", text), text
    assert text.endswith("most of it.") and "random ablation" in text and "50" in text
    few = {kind: {"train": 40, "val": n, "test": 40} for kind, n in (("harmful", 4), ("harmless", 40))}
    metric = {"harmful": {"baseline": {"n": 40}}}
    console.print(findings(summary(ablated) | {"prompts": few, "refusal_metric": metric}))
    assert " ".join(console.export_text().split()).startswith("Few prompts (under 32): 4 harmful for choosing")
