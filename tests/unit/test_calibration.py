"""Tokens and the point of the refusal metric, chosen on scores and verdicts with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from refusal_lens.errors import SettingError
from refusal_lens.refusal.calibration import calibrate_metric, choose_tokens, halves, metric_of
from refusal_lens.refusal.records import Calibration, RefusalTokens
from refusal_lens.report.claims import FEW, few_in, few_prompts, grade
from refusal_lens.stats import Interval, rate, roc


def _scores(n: int = 400, seed: int = 0) -> tuple[list[float], list[bool]]:
    """Refused replies around -3, answered ones around -7: 0, the paper's point, is above nearly all of them."""
    rng = np.random.default_rng(seed)
    refused = [i % 4 == 0 for i in range(n)]
    return [float(rng.normal(-3 if flag else -7, 1)) for flag in refused], refused


def test_youdens_point_lies_where_the_two_kinds_part():
    scores, refused = _scores()
    found = calibrate_metric(scores, refused)
    assert found.point == "calibrated" and found.threshold == pytest.approx(-5, abs=0.5)
    # No point of the curve puts a larger share of both kinds on its right side.
    best = max(above + below for _, above, below in roc(scores, refused))
    x, flags = np.array(scores), np.array(refused)
    assert (x[flags] > found.threshold).mean() + (x[~flags] < found.threshold).mean() == pytest.approx(best)
    # The paper's point would call almost nothing refused.
    paper = calibrate_metric(scores, refused, "paper")
    assert paper.threshold == 0 and paper.above.rate < 0.05 and paper.below.rate == 1


def test_the_error_is_that_of_replies_that_did_not_choose_the_point():
    scores, refused = _scores()
    found = calibrate_metric(scores, refused)
    first, second = halves(refused)
    x, flags = np.array(scores), np.array(refused)
    hits = []
    for fit, held in ((first, second), (second, first)):
        threshold = calibrate_metric(x[fit].tolist(), flags[fit].tolist()).threshold
        hits += (x[held & flags] > threshold).tolist()
    assert found.above == rate(hits) and found.above.n == sum(refused) and found.below.n == len(refused) - sum(refused)
    assert found.above.low < found.above.rate < 1
    # Noise has no point: in the sample it looks better than chance, on other replies it is not.
    gaps = []
    for seed in range(20):
        noise = calibrate_metric(np.random.default_rng(seed).normal(size=60).tolist(), refused[:60])
        inside = max(above + below for _, above, below in roc(noise.metric, noise.refused))
        gaps.append((inside, noise.above.rate + noise.below.rate))
    inside, outside = np.mean(gaps, 0)
    assert inside > 1.15 and abs(outside - 1) < 0.07


@pytest.mark.parametrize(("point", "threshold"), [("calibrated", -2.5), ("accuracy", 0.5), ("equal_error", -1.5)])
def test_each_named_point_by_hand(point, threshold):
    # Refused at -2, 1, 2; answered at -9, -8, -7, -6, -3, -1, 0: the points trade a refused for answered replies.
    refused = {-2.0: True, 1.0: True, 2.0: True}
    scores = [-9.0, -8.0, -7.0, -6.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0]
    flags = [refused.get(s, False) for s in scores]
    assert calibrate_metric(scores, flags, point).threshold == threshold


def test_one_kind_alone_has_the_papers_point():
    for flags in ([True] * 5, [False] * 5):
        found = calibrate_metric([1.0, 2.0, 3.0, 4.0, 5.0], flags)
        assert found.threshold == 0 and not len(found.to_frame())
    with pytest.raises(SettingError, match="no point 'best'"):
        calibrate_metric([1.0], [True], "best")


def test_tokens_are_those_that_tell_replies_apart():
    """Two tokens begin refusals, each half of them; a third begins refusals and answers alike."""
    rng = np.random.default_rng(0)
    refused, rows = [], []
    for i in range(200):
        flag = i % 2 == 0
        common = rng.uniform(0, 0.5)
        own = rng.uniform(0.3, 0.5) if flag else rng.uniform(0, 0.02)
        first, second = (own, 0.001) if i % 4 < 2 else (0.001, own)
        refused.append(flag)
        rows.append((common, first, second))
    chosen, held_out = choose_tokens(np.array(rows), refused)
    assert sorted(chosen) == [1, 2] and held_out.mean > 0.99
    assert held_out.n == sum(halves(refused)[1])
    (alone,), _ = choose_tokens(np.array(rows)[:, :1], refused)
    flags = np.array(refused)
    metric = metric_of(np.array(rows)[:, [0]])
    area = (metric[flags][:, None] > metric[~flags][None]).mean()
    assert alone == 0 and abs(area - 0.5) < 0.1
    every, none = choose_tokens(np.array(rows), [True] * 200)
    assert every == [0, 1, 2] and math.isnan(none.mean)


def test_tokens_without_a_calibration_have_the_papers_point(tmp_path):
    tokens = RefusalTokens((1,), ("I",))
    assert tokens.threshold == 0
    found = calibrate_metric(*_scores(40))
    kept = RefusalTokens((1,), ("I",), (1.0,), "x", Interval(1, 1, 1, 9), {"refused": rate([True])}, found)
    assert RefusalTokens.load(kept.save(tmp_path / "t")) == kept and kept.threshold == found.threshold < -3
    assert isinstance(kept.calibration, Calibration)
    assert (
        kept.plot("calibration").layout.title.text == f"Metric of training prompts: refused above {kept.threshold:.3g}"
    )


def test_claims_are_graded_by_the_share_and_its_interval():
    nan = float("nan")
    for share, words in (
        ((0.9, 0.5, 1.1), "most of it"),
        ((0.9, 0.49, 1.1), "part of it"),
        ((0.2, 0.01, 0.4), "part of it"),
        ((0.19, 0.01, 0.4), "little of it"),
        ((0.9, 0.0, 1.8), "not shown"),
        ((-0.9, -1.0, -0.8), "not shown"),
        ((0.9, nan, nan), "not shown"),
    ):
        assert grade(Interval(*share, 32)) == words


def test_few_prompts_are_named_by_step():
    enough = dict.fromkeys(("train", "val", "test"), FEW)
    assert few_prompts({"harmful": enough, "harmless": enough}) == few_in({}) == ""
    said = few_prompts({"harmful": {**enough, "train": 11, "val": 4}, "harmless": {**enough, "test": 31}})
    assert said.startswith("Few prompts (under 32): 11 harmful for extraction, 4 harmful for choosing")
    assert "31 harmless for the report" in said
