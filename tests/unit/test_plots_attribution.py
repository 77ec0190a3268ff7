"""Figures of attribution: what they show is what the record holds."""

from __future__ import annotations

import dataclasses
import json
import re

import plotly.graph_objects as go
import pytest
import torch

from refusal_lens.attribution.causal_records import CONDITIONS, CausalCheck, PatchingComparison
from refusal_lens.attribution.figures import (
    plot_causal_check,
    plot_components,
    plot_head_contributions,
    plot_patching,
    plot_propagation,
    plot_sources,
    plot_sources_by_region,
    plot_top_heads,
)
from refusal_lens.attribution.ranking import confirm_heads
from refusal_lens.attribution.records import (
    ComponentContributions,
    DirectLogitAttribution,
    HeadContributions,
)
from refusal_lens.attribution.section import causal_sentence
from refusal_lens.attribution.token_records import AttentionPatterns, Propagation, SourceContributions
from refusal_lens.attribution.views import attention_view, tokens_view
from refusal_lens.errors import ResultError
from refusal_lens.records.direction import Direction
from refusal_lens.records.labels import visible
from refusal_lens.report.views import circuitsvis_script
from refusal_lens.tensors import random_unit

DIRECTION = Direction(random_unit(8, 0), 1.0, -1, 1)
LAYERS, HEADS, N = 3, 4, 5


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def heads(prefix="p", seed=0):
    return HeadContributions(draw(LAYERS, HEADS, N, seed=seed), DIRECTION, tuple(f"{prefix}{i}" for i in range(N)))


def components(direction=DIRECTION):
    return ComponentContributions(
        draw(N),
        draw(LAYERS, HEADS, N),
        draw(LAYERS, N, seed=1),
        draw(LAYERS, N, seed=2),
        draw(LAYERS + 1, N),
        tuple("abcde"),
        direction=direction,
    )


TEXTS = (("<s>", "How", " to", "</script>", "!", "\n"), ("<s>", "Hi", "!", "\n"))
BOUNDS = torch.tensor([[[0, 1], [1, 1], [1, 4], [4, 4], [4, 6]], [[2, 3], [3, 3], [3, 4], [4, 4], [4, 6]]])


def sources():
    values = draw(LAYERS, HEADS, 2, 6)
    values[:, :, 1, :2] = 0
    return SourceContributions(values, values.abs(), BOUNDS, TEXTS, ("a", "b"), DIRECTION)


def propagation():
    grid = draw(LAYERS + 1, 2, 6)
    grid[:, 1, :2] = float("nan")
    return Propagation(grid, grid[1:], grid[1:], BOUNDS, TEXTS, ("a", "b"), DIRECTION, ("!", "⏎"))


def causal():
    return CausalCheck(
        heads=((0, 1),),
        random_heads=(((0, 2),),),
        metric=draw(len(CONDITIONS), N),
        singles=((0, 1), (0, 2)),
        predicted=draw(2),
        measured=draw(2, N),
        spearman=0.5,
        p_value=0.1,
        prompts=tuple("abcde"),
        n_selection=4,
        n_reference=3,
        n_last=1,
    )


def test_head_heatmap_labels_its_top_heads():
    record = heads()
    figure = plot_head_contributions(record, top=3)
    torch.testing.assert_close(torch.tensor(figure.data[0].z), record.mean)
    best = record.to_frame()["label"].head(3).tolist()
    assert {a.text for a in figure.layout.annotations} == set(best)
    for note in figure.layout.annotations:  # a label sits on its own cell
        assert record.labels[int(note.y)][int(note.x)] == note.text
    assert list(map(list, figure.data[0].customdata)) == [list(row) for row in record.labels]


def test_head_heatmap_of_a_report_shows_the_report_split():
    report = confirm_heads(heads("s", 1), heads("r", 2), heads("h", 3), top=2)
    figure = plot_head_contributions(report)
    torch.testing.assert_close(torch.tensor(figure.data[0].z), report.reported.mean)
    assert {a.text for a in figure.layout.annotations} == set(report.labels)
    bars = plot_top_heads(report)
    assert [b.name for b in bars.data] == [f"harmful (reported), n = {N}", f"harmless, n = {N}"]
    assert list(bars.data[0].x) == list(report.labels)
    assert bars.data[0].y[0] == pytest.approx(report.intervals[0].mean)


@pytest.mark.parametrize("top", [2, 7, 100])
def test_waterfall_adds_up_to_the_total(top):
    record = components()
    bars = plot_components(record, top).data[0]
    relative = [y for y, kind in zip(bars.y, bars.measure, strict=True) if kind == "relative"]
    assert sum(relative) == pytest.approx(float(record.parts.mean(-1).sum()), abs=1e-5)
    assert bars.text[-1] == f"{float(record.parts.mean(-1).sum()):.2f}"
    assert len(relative) == min(top, len(record.parts)) + (top < len(record.parts))
    value = dict(zip(bars.x, bars.y, strict=True))
    strongest = int(record.parts.mean(-1).abs().argmax())
    assert value[record.part_labels[strongest]] == pytest.approx(float(record.parts.mean(-1)[strongest]))


def test_waterfall_of_logits_says_that_the_cap_is_left_out():
    record = DirectLogitAttribution(
        components(None), draw(N), draw(N), draw(N), draw(N), 30.0, ("I",), ("Sure", "Here")
    )
    figure = plot_components(record)
    assert "before the logit cap" in figure.layout.title.text and "Sure, Here" in figure.layout.title.text
    assert sum(figure.data[0].y) == pytest.approx(float(record.parts.mean(-1).sum()), abs=1e-5)


def test_source_strip_holds_every_token_once_in_order():
    record = sources()
    for width in (4, 20):
        shown = plot_sources(record, 0, heads=[(0, 1), (2, 2)], width=width).data[0]
        texts = [t for row in shown.text for t in row][: len(TEXTS[0])]
        assert texts == ["<s>", "How", "␣to", "</script>", "!", "⏎"]
        values = [v for row in shown.z for v in row if v is not None]
        assert sum(values) == pytest.approx(
            float(record.values[0, 1, 0].sum() + record.values[2, 2, 0].sum()), abs=1e-5
        )
        assert [r for row in shown.customdata for r in row][:6] == ["bos", *["instruction"] * 3, *["template_post"] * 2]


def test_region_bars_sum_to_the_heads():
    record = sources()
    figure = plot_sources_by_region(record, [(0, 1), (1, 3)])
    totals = torch.tensor([list(bar.y) for bar in figure.data]).sum(0)
    mean = record.head_contributions().mean
    torch.testing.assert_close(totals, torch.stack([mean[0, 1], mean[1, 3]]))
    assert "suffix" not in [bar.name for bar in figure.data]


def test_propagation_maps():
    record = propagation()
    mean = plot_propagation(record)
    assert list(mean.layout.xaxis.ticktext) == ["bos", "instruction", "! (-2)", "⏎ (-1)"]
    assert len(mean.data[0].z) == LAYERS + 1
    assert mean.data[0].z[1][-1] == pytest.approx(float(record.projection[1, :, -1].mean()), abs=1e-5)
    one = plot_propagation(record, prompt=1)
    assert list(one.layout.xaxis.ticktext) == ["<s>", "Hi", "!", "⏎"]
    assert one.data[0].z[2][0] == pytest.approx(float(record.projection[2, 1, 2]), abs=1e-5)


def test_causal_check_shows_changes_and_single_heads():
    record = causal()
    figure = plot_causal_check(record)
    assert figure.data[0].y[0] == pytest.approx(record.change("mean_ablation").mean)
    assert list(figure.data[2].text) == ["L0H1"] and list(figure.data[3].text) == ["L0H2"]
    assert figure.data[2].x[0] == pytest.approx(float(record.predicted[0]))
    assert "0.50" in figure.layout.annotations[1].text


@pytest.mark.parametrize(
    ("heads", "words"), [(-1.9, "most of it"), (-0.8, "part of it"), (-0.25, "little of it"), (0.0, "not shown")]
)
def test_the_top_heads_claim_is_their_share_of_the_ablations_effect(heads, words):
    """The direction's ablation takes 2 from the metric, random heads 0.02; the heads' own effect differs by prompt."""
    noise = torch.linspace(-0.04, 0.04, N)
    rows = {"baseline": 0.0, "mean_ablation": heads, "random_mean_ablation": -0.02, "direction_ablation": -2.0}
    metric = torch.stack(
        [rows.get(name, 0.0) + (noise if name == "mean_ablation" else 0 * noise) for name in CONDITIONS]
    )
    record = dataclasses.replace(causal(), metric=metric)
    share = record.share()
    assert share.mean == pytest.approx((heads + 0.02) / -2, abs=1e-6) and share.low < share.mean < share.high
    assert causal_sentence(record).endswith(f"{share.mean:.0%} [{share.low:.0%}, {share.high:.0%}]: {words}.")
    older = dataclasses.replace(record, metric=metric[:-1], conditions=CONDITIONS[:-1])
    assert causal_sentence(older).endswith("was not measured.")


def test_patching_leaves_out_heads_that_were_not_run():
    exact = draw(2, 3)
    exact[0, 1] = float("nan")
    figure = plot_patching(PatchingComparison(draw(2, 3), exact, ("a",), ("b",), 1.0, -1.0, 0.9, 0.9))
    assert len(figure.data[1].x) == 5 and "L0H1" not in list(figure.data[1].text)


def test_circuitsvis_views_carry_their_data_and_nothing_else():
    values = torch.tensor([[[1.0, 0.0], [0.25, 0.75]]])
    record = AttentionPatterns(values, ((2, 1),), ("</script><b>", "b"), "p")
    html = attention_view(record, "att-1")
    assert html.count("</script>") == 1 and "<b>" not in html  # only its own element is closed
    props = json.loads(re.search(r"AttentionHeads, (.*)\)</script>$", html).group(1))
    assert props["attention"] == values.tolist() and props["attentionHeadNames"] == ["L2H1"]
    assert props["tokens"][0] == "</script><b>" and 'id="att-1"' in html
    html = tokens_view(sources(), 0, [(0, 1)], "tok")
    props = json.loads(re.search(r"ColoredTokens, (.*)\)</script>$", html).group(1))
    assert props["tokens"] == [visible(text) for text in TEXTS[0]] and props["maxValue"] == -props["minValue"]
    assert sum(props["values"]) == pytest.approx(float(sources().values[0, 1, 0].sum()), abs=1e-5)
    assert len(html) < 2000
    with pytest.raises(ResultError, match="element id"):
        attention_view(record, 'x"><script>')


def test_circuitsvis_script_is_one_element():
    script = circuitsvis_script()
    assert script.startswith("<script>") and script.count("</script") == 1 and "CircuitsVis" in script


def test_no_figure_changes_its_record_or_shows_itself(monkeypatch):
    monkeypatch.setattr(go.Figure, "show", lambda *a, **k: pytest.fail("a plot showed itself"))
    record = sources()
    before = record.values.clone()
    plot_sources(record)
    plot_sources_by_region(record, [(0, 0)])
    tokens_view(record)
    assert torch.equal(record.values, before)
