"""The chapters on behaviour, from records alone: every figure is drawn, text is escaped, nothing is claimed that was
not measured."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from refusal_lens.behaviour.judges.kappa import agreement
from refusal_lens.behaviour.records import EvaluationTable, HarnessScore, HarnessScores, Losses, RefusalProxy, Verdict
from refusal_lens.behaviour.section import evaluation_section, harness_section, losses_section, proxy_section
from refusal_lens.direction.cone_records import SubspaceEffects
from refusal_lens.direction.cone_section import subspace_section
from refusal_lens.direction.effect_records import EffectMatrix, SystemPrompts
from refusal_lens.direction.records import DirectionTrace, Stability
from refusal_lens.direction.section import (
    effects_section,
    stability_section,
    system_section,
    trace_section,
)
from refusal_lens.records.direction import Direction
from refusal_lens.refusal.records import Completion, Completions
from refusal_lens.report.page import Page
from refusal_lens.stats import Interval, rate
from refusal_lens.study.sections import scorecard_section
from refusal_lens.tensors import random_unit

DIRECTION = Direction(random_unit(8, 0), 2.0, -1, 1)
NASTY = "</script><b>x</b>"


def table() -> EvaluationTable:
    items = [
        Completion(f"{NASTY} {i}", f"reply {i}", c, i % 2 == 0) for c in ("baseline", "ablation") for i in range(4)
    ]
    verdicts = [
        Verdict(judge, kind, "harmful", item.condition, item.prompt, item.response, said, NASTY)
        for judge, kind in (("substrings", "refusal"), ("llama-guard-2", "safety"))
        for i, item in enumerate(items)
        for said in [item.refused if judge == "substrings" else (None if i == 0 else True)]
    ]
    completions = (Completions(tuple(items), "harmful", 8),)
    return EvaluationTable("m", DIRECTION, completions, tuple(verdicts), agreement(verdicts))


def interval(x: float) -> Interval:
    return Interval(x, x - 0.1, x + 0.1, 5)


def all_sections() -> list:
    cells = ((interval(1.0), interval(-2.0)), (interval(0.0), interval(0.5)))
    effects = EffectMatrix("ablation", ("a", "b"), ("p", "q"), cells, cells, cells[0], ((1.0, 0.1), (0.1, 1.0)))
    other = dataclasses.replace(DIRECTION, unit=random_unit(8, 1), layer=2, relaxed="max_kl .2 instead of .1")
    rates = {name: rate([True, False]) for name in ("baseline", "ablation")}
    scores = [HarnessScore(c, "mmlu", "acc,none", v, 0.01, 50) for c, v in (("baseline", 0.5), ("ablation", 0.49))]
    nll, tokens = torch.rand(2, 5, dtype=torch.float64) + 1, torch.tensor([3, 4, 5, 6, 7])
    return [
        evaluation_section(table()),
        losses_section([Losses("own", ("baseline", "ablation"), nll, tokens)]),
        harness_section(HarnessScores(tuple(scores), "0.4")),
        proxy_section(
            RefusalProxy(
                ("a", "b", "c"), ("h", "h", "s"), torch.tensor([1.0, 2.0, -1.0]), torch.tensor([True, True, False])
            )
        ),
        stability_section(Stability(DIRECTION, (DIRECTION, other), 3, 10, 12, 1)),
        subspace_section(
            SubspaceEffects(("pca", "random"), (1, 2), torch.rand(2, 2, 6, 4), torch.rand(6, 4), (0.9, 0.0), DIRECTION)
        ),
        effects_section(effects, "cross", "Cross-effects"),
        system_section(SystemPrompts(("", "Be kind."), "harmful", (rates, rates))),
        trace_section(DirectionTrace(torch.rand(2, 3, 4), torch.rand(2, 3, 4), ("a", "b"), DIRECTION), "t", "T"),
    ]


def test_every_section_renders_into_one_page():
    found = all_sections()
    page = Page("Behaviour", sections=tuple(found)).render()
    assert NASTY not in page
    ids = [item.id for section in found for item in section.items]
    assert len(ids) == len(set(ids)) and all(f'id="{i}"' in page for i in ids)
    for figure in (item for section in found for item in section.items if hasattr(item, "figure")):
        assert figure.figure.data and figure.caption
    assert "Cohen&#39;s kappa" in page and "Clopper-Pearson" in page


def test_losses_by_hand():
    nll = torch.tensor([[2.0, 4.0], [3.0, 5.0]], dtype=torch.float64)
    record = Losses("own", ("baseline", "ablation"), nll, torch.tensor([1, 3]))
    assert record.ce("baseline").mean == 1.5 and record.change("ablation").mean == 0.5


def test_benchmarks_that_were_not_run_are_said_to_be_not_measured():
    assert "Not measured" in harness_section(None).text[0]


@pytest.mark.parametrize(("model", "known"), [("Qwen/Qwen-1_8B-chat", True), ("organism", False)])
def test_the_scorecard_puts_paper_and_run_side_by_side_only_for_the_same_model(model, known):
    r = dataclasses.asdict(rate([True] * 9 + [False]))
    summary = {
        "model": model,
        "direction": {"pos": -1, "layer": 15},
        "scores": {"bypass": -4.4, "induce": 1.6, "kl": 0.08},
        "refusal": {
            "harmful": {name: r for name in ("baseline", "ablation")},
            "harmless": {name: r for name in ("baseline", "addition")},
        },
    }
    (shown,) = scorecard_section(summary).items
    rows = {row[0]: row[1:] for row in shown.rows}
    bypass, baseline = rows["bypass (Table 5)"], rows["harmful refused, baseline (Fig. 1)"]
    assert bypass == (("-4.415" if known else "not measured"), "not measured", "-4.400")
    assert baseline[1] == ("70%" if known else "not measured") and "n = 10" in baseline[2]
