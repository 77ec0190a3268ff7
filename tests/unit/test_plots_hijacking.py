"""Figures, statistics and words about suffixes: what they show is what the records hold."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from scipy import stats as scipy_stats

from refusal_lens.attribution.token_records import AttentionPatterns
from refusal_lens.data.suffixes import Suffix
from refusal_lens.hijacking.causal_records import CausalTest, CausalTests
from refusal_lens.hijacking.detection import detectors, roc
from refusal_lens.hijacking.figures import (
    plot_attention_positions,
    plot_attention_regions,
    plot_causal_tests,
    plot_drop_waterfall,
    plot_roc,
    plot_split,
    plot_suffix_heads,
    plot_suffix_ranking,
    plot_suffix_trace,
    plot_token_effects,
)
from refusal_lens.hijacking.mechanisms import MECHANISMS, mechanism
from refusal_lens.hijacking.observation_records import Observation, Split, SuffixResult, TokenEffects, departure_site
from refusal_lens.hijacking.records import Investigation
from refusal_lens.hijacking.section import hijacking_cards, hijacking_section
from refusal_lens.hijacking.views import attention_pair_view, paired_attention
from refusal_lens.records.base import load_record
from refusal_lens.records.direction import Direction
from refusal_lens.refusal.records import RefusalTokens
from refusal_lens.report.page import Figure, Page, Widget
from refusal_lens.stats import correlation, fraction_interval, paired_p
from refusal_lens.tensors import random_unit

DIRECTION = Direction(random_unit(8, 0), 1.0, -1, 2)
LAYERS, HEADS, N, POST = 3, 4, 12, 2
TOP = ((1, 0), (0, 2))


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def observation(condition, shift=0.0, to_suffix=0.0, seed=0, refused=None):
    by_region = draw(LAYERS, 5, N, seed=seed) * 0.1
    mlp, embed = draw(LAYERS, N, seed=seed + 1) * 0.1, torch.zeros(N)
    bias = torch.zeros(LAYERS, N)
    writes = (by_region.sum(1) + mlp).cumsum(0)
    projection = torch.cat([torch.zeros(1, N), writes]) + torch.tensor([0.0, shift, shift, shift])[:, None]
    attention = torch.zeros(len(TOP), POST, N, 5)
    attention[..., 3] = to_suffix
    attention[..., 2] = 1 - to_suffix
    spread = draw(N, seed=seed + 2) * 0.01
    attention[..., 3] += spread
    attention[..., 2] -= spread
    every = torch.zeros(LAYERS, HEADS, POST, 5)
    every[..., 2] = 1 - to_suffix
    every[..., 3] = to_suffix
    return Observation(
        condition=condition,
        prompts=tuple(f"p{i}" for i in range(N)),
        suffixes=("",) * N,
        projection=projection,
        cosine=projection / 3,
        instruction_projection=projection * 0,
        instruction_cosine=projection * 0,
        instruction_max=projection * 0 + 0.1 * draw(4, N, seed=3),
        heads=draw(LAYERS, HEADS, N, seed=seed),
        by_region=by_region,
        attn_bias=bias,
        mlp=mlp,
        embed=embed,
        attention=attention,
        attention_mean=every,
        dominance=torch.full((LAYERS, N), to_suffix),
        top_dominance=torch.full((N,), to_suffix) + spread,
        metric=(5 + shift + 0.3 * draw(N, seed=seed + 4)).double(),
        top_heads=TOP,
        responses=() if refused is None else ("I cannot",) * N,
        refused=() if refused is None else (refused,) * N,
    )


PLAIN, HARMLESS = observation("plain", refused=True), observation("harmless", -6, refused=False)
RANDOM = observation("random", -0.2, 0.1, seed=1, refused=True)
SUFFIXED = observation("suffix", -9.0, 0.7, seed=2, refused=False)


def causal(top=0.8, every=0.95, restored=0.9, random=0.05):
    drop = PLAIN.metric - SUFFIXED.metric

    def test(name, share, heads=True, reverse=False):
        noise = 0.05 * draw(N, seed=len(name)).double()
        metric = PLAIN.metric - share * drop if reverse else SUFFIXED.metric + share * drop
        placebo = PLAIN.metric if reverse else SUFFIXED.metric
        controls = (placebo + (-1 if reverse else 1) * random * drop)[None] if heads else torch.empty(0, N).double()
        return CausalTest(name, reverse, metric + noise, controls, placebo + noise, ())

    tests = (
        test("cut top heads", top),
        test("cut all heads", every, False),
        test("reverse: patch output of top heads", 0.6, reverse=True),
        test("restore r̂", restored, False),
    )
    return CausalTests(tests, PLAIN.metric, SUFFIXED.metric, TOP, (((1, 1), (0, 3)),))


def result(suffixed=SUFFIXED, tests=None, kind="adversarial", text=" x </script> y"):
    part = Split(draw(LAYERS, HEADS, N), draw(LAYERS, HEADS, N, seed=5), draw(LAYERS, HEADS, 5, N))
    tokens = TokenEffects(("x", "</script>", "y"), draw(3, N).double(), draw(3, N, seed=1).double())
    patterns = (
        AttentionPatterns(torch.eye(3)[None], (TOP[0],), ("<s>", "a", "!"), "a"),
        AttentionPatterns(torch.eye(5)[None], (TOP[0],), ("<s>", "a", "x", "y", "!"), "a x y"),
    )
    return SuffixResult(
        Suffix(kind, text), (3,) * N, suffixed, RANDOM, None, part, part, torch.full((LAYERS, HEADS), 0.5),
        paired_p((RANDOM.metric - suffixed.metric).tolist()), tests, tokens, patterns,
    )  # fmt: skip


def report(results):
    found = detectors(
        {"harmful": PLAIN, "harmful + the strongest suffix": SUFFIXED},
        {"harmless": HARMLESS, "harmless, looks harmful": PLAIN},
        DIRECTION.layer,
    )
    screened = torch.stack([r.suffixed.metric for r in results])
    return Investigation(
        "toy", DIRECTION, RefusalTokens((1,), ("I",)), TOP, ("q",), PLAIN, HARMLESS, tuple(results), screened,
        torch.stack([r.suffixed.top_dominance.double() for r in results]),
        tuple(r.suffix for r in results), found, N + 1, ("1 left out",), ("!", "⏎"),
    )  # fmt: skip


WORKS = report([result(tests=causal()), result(RANDOM, kind="greeting", text=" hi"), result(text=" z")])
FIGURES = {
    "trace": lambda r: plot_suffix_trace(r, r.results[0]),
    "heads": lambda r: plot_suffix_heads(r, r.results[0]),
    "regions": lambda r: plot_attention_regions(r, r.results[0]),
    "positions": lambda r: plot_attention_positions(r, r.results[0]),
    "split": lambda r: plot_split(r, r.results[0]),
    "split from plain": lambda r: plot_split(r, r.results[0], "plain"),
    "waterfall": lambda r: plot_drop_waterfall(r, r.results[0]),
    "ranking": plot_suffix_ranking,
    "tokens": lambda r: plot_token_effects(r.results[0].tokens),
    "causal": lambda r: plot_causal_tests(r.results[0].causal),
    "roc": lambda r: plot_roc(r.detectors),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_made(name):
    figure = FIGURES[name](WORKS)
    assert isinstance(figure, go.Figure) and len(figure.data) > 0
    assert "NaN" not in figure.to_json()


def test_bars_are_the_records_numbers():
    split = plot_split(WORKS, WORKS.results[0])
    moved, changed, whole = (trace.y for trace in split.data)
    assert np.allclose(np.add(moved, changed), whole)
    assert list(split.data[0].x) == ["L1H0", "L0H2"]
    regions = plot_attention_regions(WORKS, WORKS.results[0])
    for axis in ("y", "y2", "y3"):
        bars = [t.y for t in regions.data if t.yaxis == axis or (axis == "y" and t.yaxis is None)]
        assert np.allclose(np.sum(bars, 0), 1)
    waterfall = plot_drop_waterfall(WORKS, WORKS.results[0]).data[0]
    table = WORKS.drop_parts(WORKS.results[0])
    assert waterfall.measure[-1] == "total" and waterfall.text[-1] == f"{table['mean'].iloc[-1]:.2f}"
    tests = plot_causal_tests(WORKS.results[0].causal)
    assert tests.data[0].y[0] == pytest.approx(0.8, abs=0.02)
    assert tests.data[1].y[1] is None  # all heads: there are no random ones


def test_long_suffixes_are_drawn_in_lines():
    tokens = TokenEffects(tuple(f"t{i}" for i in range(20)), draw(20, N).double(), draw(20, N, seed=1).double())
    figure = plot_token_effects(tokens)
    for trace, grid in zip(figure.data, (tokens.removed, tokens.written), strict=True):
        cells = [value for line in trace.z for value in line if value is not None]
        assert len(trace.z) == 2 and np.allclose(cells, grid.mean(-1)) and trace.text[1][7].startswith("t19<br>")


def test_aligned_attention_has_one_axis():
    (_, plain), (_, suffixed) = paired_attention(WORKS.results[0].patterns)
    assert plain["tokens"] == ["<s>", "a", "·", "·", "!"] and suffixed["tokens"] == ["<s>", "a", "x", "y", "!"]
    assert plain["attention"][0][4] == [0, 0, 0, 0, 1] and plain["attention"][0][2] == [0] * 5
    both = attention_pair_view(WORKS.results[0].patterns).props
    assert both["attentionHeadNames"] == ["L1H0, plain", "L1H0, suffixed"] and both["tokens"] == suffixed["tokens"]
    assert both["attention"] == [*plain["attention"], *suffixed["attention"]]


# -- words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tests", "name"),
    [
        (causal(), "top heads"),
        (causal(top=0.3), "attention"),
        (causal(top=0.8, random=0.85), "attention"),
        (causal(top=0.1, every=0.2), "direction"),
        (causal(top=0.1, every=0.2, restored=0.1), "otherwise"),
        (None, "untested"),
    ],
)
def test_the_mechanism_says_what_was_shown(tests, name):
    said = mechanism(result(tests=tests))
    assert said.name == MECHANISMS[name] and said.hijacks == (name == "top heads")
    for word in ("hijack", "because"):
        assert (word in said.sentence) == said.hijacks
    assert "n = 12" in said.sentence


def test_a_cut_that_brings_back_little_more_than_half_is_a_part_of_the_reason():
    assert ", in part because it hijacks" in mechanism(result(tests=causal(top=0.5))).sentence
    assert "in part" not in mechanism(result(tests=causal())).sentence


def test_without_replies_the_calibrated_point_decides_who_is_refused():
    seen = dataclasses.replace(SUFFIXED, responses=(), refused=(), metric=torch.tensor([-2.0, -0.5, 0.5] * 4).double())
    assert seen.refusal_rate.rate == 1 / 3
    assert dataclasses.replace(seen, threshold=-1.0).refusal_rate.rate == 2 / 3


def test_attention_must_rise_for_the_word():
    still = dataclasses.replace(SUFFIXED, attention=RANDOM.attention)
    said = mechanism(result(still, causal()))
    assert not said.hijacks and "hijack" not in said.sentence


def test_a_suffix_that_does_not_work_is_not_explained():
    said = mechanism(result(RANDOM, causal()))
    assert said.name == MECHANISMS["none"] and not said.hijacks
    assert result(RANDOM).departure() is None and result().departure() == 1


def text_of(section):
    html = Page(title="t", cards=(), sections=(section,)).render()
    # The page's own words: without scripts (plotly's code is not ours).
    return re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL).lower()


def test_the_section_uses_the_words_only_where_the_test_passed():
    words = text_of(hijacking_section(WORKS))
    assert "hijack" in words and "because" in words and "where a detector fails" in words
    for tests in (causal(top=0.2), None):
        other = text_of(hijacking_section(report([result(tests=tests), result(RANDOM, text=" hi")])))
        assert "hijack" not in other and "because" not in other
        assert "n = " in other or "12" in other
    drawn = [item for item in hijacking_section(WORKS).flat() if isinstance(item, (Figure, Widget))]
    assert len(drawn) > 20 and all(item.n and item.control for item in drawn)
    assert len({item.id for item in drawn}) == len(drawn)
    labels = [card.label for card in hijacking_cards(WORKS)]
    assert len(labels) == 3 and "the lost refusals" in labels[-1]
    assert json.dumps(labels)


def test_tables_and_records(tmp_path):
    frame = WORKS.results_frame()
    assert list(frame["mechanism"]) == [MECHANISMS[k] for k in ("top heads", "none", "untested")]
    assert frame["p"].iloc[0] == pytest.approx(
        scipy_stats.false_discovery_control([r.p_metric for r in WORKS.results])[0]
    )
    WORKS.save(tmp_path / "report")
    loaded = load_record(tmp_path / "report", Investigation)
    assert loaded.results_frame().equals(frame)
    assert loaded.results[0].causal.to_frame().equals(WORKS.results[0].causal.to_frame())
    assert loaded.detectors.to_frame().equals(WORKS.detectors.to_frame())
    table = WORKS.drop_parts(WORKS.results[0]).set_index("part")["mean"]
    assert len(table) == 9


# -- statistics -----------------------------------------------------------------------------------------------------


def test_fractions():
    rng = np.random.default_rng(0)
    whole = rng.normal(10, 1, 50)
    found = fraction_interval(0.5 * whole + rng.normal(0, 1, 50), whole)
    assert found.low < 0.5 < found.high and found.n == 50 and found.high - found.low < 0.15
    assert fraction_interval(whole, whole).low == pytest.approx(1)
    unclear = fraction_interval(whole, rng.normal(0, 1, 50))
    assert unclear.low != unclear.low  # no drop, so no share of it
    assert fraction_interval([], []).n == 0
    assert fraction_interval([float("nan")], [1.0]).mean != fraction_interval([float("nan")], [1.0]).mean


def test_roc_against_the_rank_test():
    rng = np.random.default_rng(1)
    positive, negative = rng.normal(1, 1, 60).round(1), rng.normal(0, 1, 80).round(1)
    found = roc(positive.tolist(), negative.tolist())
    u = scipy_stats.mannwhitneyu(positive, negative).statistic / (60 * 80)
    assert found.auroc.mean == pytest.approx(u)
    area = np.trapezoid(found.tpr, found.fpr) if hasattr(np, "trapezoid") else np.trapz(found.tpr, found.fpr)
    assert area == pytest.approx(u)
    assert found.auroc.low < u < found.auroc.high and (found.fpr[0], found.tpr[-1]) == (0.0, 1.0)
    assert roc([2.0, 3.0], [0.0, 1.0]).auroc.mean == 1 and roc([0.0], [0.0]).auroc.mean == 0.5


def test_departure_needs_every_later_site():
    reference = draw(6, 30)
    lower = reference - torch.tensor([0, 0, 2, 0, 2, 2.0])[:, None] + 0.1 * draw(6, 30, seed=1)
    lower[[0, 1, 3]] += 0.5
    assert departure_site(reference, lower) == 4
    assert departure_site(reference, reference) is None


def test_correlation_of_few_or_equal_values():
    assert correlation([1, 2, 3], [2, 4, 9])[0] == pytest.approx(1)
    assert correlation([1, 2], [1, 2])[0] != correlation([1, 2], [1, 2])[0]
    assert correlation([1, 1, 1], [1, 2, 3])[0] != 0
    assert paired_p([0.0, 0.0]) == 1


def test_detector_thresholds_come_from_the_plain_harmless_prompts():
    d = WORKS.detectors
    assert d.flagged("last token", 2, "harmless", 0.05).rate <= 0.05
    assert d.flagged("last token", 2, "harmful").rate == 1
    assert d.flagged("last token", 2, "harmless, looks harmful").rate == 1
    failures = d.failures()
    assert any("finds only" in f and "strongest suffix" in f for f in failures)
    assert any("flags 100% of harmless, looks harmful" in f for f in failures)
    assert len(d.by_site()) == 3 * 4 * 2
