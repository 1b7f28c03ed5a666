"""Intervals and paired comparisons against scipy, known distributions, and no effect at all."""

import numpy as np
import pytest
from scipy import stats

from hbsdk.evaluation.statistics import compare, mean_interval


def normal(count, mean=0.0, deviation=1.0, seed=0):
    return np.random.default_rng(seed).normal(mean, deviation, count)


def test_the_interval_is_scipys():
    values = np.random.default_rng(1).gamma(2.0, size=48)
    got = mean_interval(values, resamples=40_000)
    wanted = stats.bootstrap(
        (values,), np.mean, n_resamples=40_000, method="percentile", rng=np.random.default_rng(2)
    )
    noise = 4 * wanted.standard_error * np.sqrt(1 / (0.025 * 40_000))  # of a quantile of resamples
    assert got.mean == pytest.approx(values.mean(), abs=1e-12)
    assert got.low == pytest.approx(wanted.confidence_interval.low, abs=noise)
    assert got.high == pytest.approx(wanted.confidence_interval.high, abs=noise)
    other = stats.bootstrap(  # negative control: a 90 % interval is told from one of 95 %
        (values,), np.mean, n_resamples=40_000, method="percentile", confidence_level=0.9,
        rng=np.random.default_rng(2),
    )  # fmt: skip
    assert abs(got.low - other.confidence_interval.low) > noise


def test_the_interval_covers_the_true_mean_as_often_as_it_says():
    intervals = [mean_interval(normal(64, seed=seed), resamples=2000) for seed in range(400)]
    covered = np.mean([one.low <= 0.0 <= one.high for one in intervals])
    assert 0.91 <= covered <= 0.975
    wrong = np.mean([one.low <= 0.5 <= one.high for one in intervals])
    assert wrong < 0.1


def test_the_interval_has_the_width_of_the_standard_error():
    values = normal(100, mean=3.0, deviation=2.0)
    got = mean_interval(values)
    wanted = 2 * 1.96 * values.std() / 10
    assert got.high - got.low == pytest.approx(wanted, rel=0.05)


def test_the_same_values_give_the_same_interval_and_another_seed_another():
    values = normal(20)
    assert mean_interval(values) == mean_interval(values.copy())
    assert mean_interval(values).low != mean_interval(values, seed=1).low


def test_a_constant_effect_is_found_exactly_though_subjects_vary():
    base = normal(40, deviation=5.0)
    got = compare(base + 0.1, base)
    assert got.difference.mean == pytest.approx(0.1)
    assert got.difference.low == pytest.approx(0.1)
    assert got.difference.high == pytest.approx(0.1)
    assert (got.higher, got.lower) == (40, 0)
    assert got.p_value < 1e-6
    unpaired = mean_interval(base + 0.1), mean_interval(base)  # the pairing is what finds it
    assert unpaired[0].low < unpaired[1].high


def test_a_noisy_effect_is_within_its_interval_and_p_is_scipys():
    base = normal(60, mean=1.0)
    ours = base + normal(60, mean=0.3, deviation=0.2, seed=5)
    got = compare(ours, base)
    assert got.difference.low < 0.3 < got.difference.high
    assert got.p_value == pytest.approx(stats.wilcoxon(ours, base).pvalue)
    assert got.higher + got.lower == 60


def test_no_effect_is_seldom_called_one():
    found = []
    for seed in range(400):
        base, noise = normal(48, seed=seed), normal(48, deviation=0.3, seed=10_000 + seed)
        difference = compare(base + noise, base, resamples=2000).difference
        found.append(difference.low > 0.0 or difference.high < 0.0)
    assert 0.02 <= np.mean(found) <= 0.09


def test_equal_methods_differ_by_nothing():
    base = normal(12, mean=2.0)
    same = [(0.1 * value + 0.9 * value) for value in base]  # equal but for rounding
    got = compare(same, base)
    assert got.difference.mean == got.difference.low == got.difference.high == 0.0
    assert got.p_value == 1.0
    assert (got.higher, got.lower) == (0, 0)


def test_the_relative_change_is_resampled_with_what_it_is_relative_to():
    base = np.abs(normal(50, mean=4.0)) + 1.0
    got = compare(base * 0.98, base)
    assert got.relative is not None
    assert got.relative.mean == pytest.approx(-0.02)
    assert (got.relative.low, got.relative.high) == pytest.approx((-0.02, -0.02))
    assert compare(normal(50) + 1.0, normal(50)).relative is None  # shares of about nothing


def test_one_subject_has_a_mean_and_no_interval():
    got = compare([0.5], [0.4])
    assert got.difference.mean == pytest.approx(0.1)
    assert got.difference.low is None
    assert got.difference.high is None


@pytest.mark.parametrize("values", [[], [[0.1, 0.2]], [0.1, float("nan")], [float("inf")]])
def test_values_that_have_no_mean_are_refused(values):
    with pytest.raises(ValueError, match="one finite number a subject"):
        mean_interval(values)


def test_other_numbers_of_subjects_cannot_be_compared():
    with pytest.raises(ValueError, match="got 2 and 3"):
        compare([1.0, 2.0], [1.0, 2.0, 3.0])
