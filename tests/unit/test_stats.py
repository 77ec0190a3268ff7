import numpy as np
import pytest

from refusal_lens.stats import Interval, benjamini_hochberg, mean_interval, rate


def test_clopper_pearson_matches_its_definition():
    # For 0 of n the upper end solves (1 - p)^n = 0.025.
    r = rate([False] * 20)
    assert (r.rate, r.low, r.n) == (0, 0, 20) and r.high == pytest.approx(1 - 0.025 ** (1 / 20))
    assert rate([True] * 20).low == pytest.approx(0.025 ** (1 / 20))


def test_rate_of_nothing_knows_nothing():
    r = rate([])
    assert np.isnan(r.rate) and (r.low, r.high, r.n) == (0, 1, 0)


def test_bootstrap_interval_covers_the_mean_and_shrinks():
    rng = np.random.default_rng(1)
    small, large = (mean_interval(rng.normal(3, 1, n).tolist()) for n in (20, 2000))
    assert small.low < 3 < small.high and large.high - large.low < (small.high - small.low) / 5
    assert mean_interval([2.0]) == Interval(2.0, 2.0, 2.0, 1)


def test_benjamini_hochberg_by_hand():
    # p * m / rank, made monotone from the largest down.
    assert benjamini_hochberg([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])
