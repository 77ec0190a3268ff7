import numpy as np
import pytest
from scipy import stats as scipy_stats

from refusal_lens.stats import Interval, auroc, benjamini_hochberg, bootstrap, columns, mean_interval, rate


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


def test_bootstrap_agrees_with_scipy():
    rng = np.random.default_rng(3)
    x, y = rng.normal(2, 1, 60), rng.normal(4, 1, 60)

    def ratio(a, b, axis=1):
        return a.mean(axis) / b.mean(axis)

    low, high = bootstrap(ratio, x, y, resamples=4000)
    theirs = scipy_stats.bootstrap(
        (x, y), ratio, paired=True, method="percentile", n_resamples=4000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_delong_interval_covers_and_agrees_with_mann_whitney():
    rng = np.random.default_rng(4)
    positive, negative = rng.normal(1, 1, 80), rng.normal(0, 1, 90)
    found = auroc(positive, negative)
    assert found.mean == pytest.approx(scipy_stats.mannwhitneyu(positive, negative).statistic / (80 * 90))
    assert found.low < 0.7602 < found.high  # P(positive > negative) of these two normals
    assert auroc([2.0, 3.0], [0.0, 1.0]) == Interval(1.0, 1.0, 1.0, 4)


def test_columns_of_rates_and_means():
    assert columns(Interval(1.0, 0.5, 2.0, 3), "bypass", "b_") == {"bypass": 1.0, "b_low": 0.5, "b_high": 2.0}
    assert columns(rate([True]), "share")["share"] == 1
