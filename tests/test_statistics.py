"""Intervals against figures computed by other means."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locomo.statistics import clustered_mean, wilson


def test_clustered_mean_by_hand() -> None:
    """Clusters 1/2, 2/2 and 0/2: mean 0.5, residual sums 0, 1, -1, variance 3/2 * 2 / 36, t(2) = 4.3027."""
    estimate = clustered_mean([1, 0, 1, 1, 0, 0], ["a", "a", "b", "b", "c", "c"])
    half = 4.302652729911275 * math.sqrt(3 / 2 * 2 / 36)
    assert estimate.mean == 0.5
    assert estimate.low == max(0.0, 0.5 - half)
    assert estimate.high == min(1.0, 0.5 + half)
    assert (estimate.n, estimate.clusters) == (6, 3)


def test_singleton_clusters_are_the_ordinary_t_interval() -> None:
    from scipy import stats

    values = [0.2, 0.4, 0.9, 0.5, 0.7]
    estimate = clustered_mean(values, list("abcde"))
    mean = sum(values) / 5
    low, high = stats.t.interval(0.95, 4, loc=mean, scale=stats.sem(values))
    assert estimate.low == pytest.approx(low)
    assert estimate.high == pytest.approx(high)


def test_no_interval_where_there_is_none() -> None:
    assert clustered_mean([], []).mean is None
    one = clustered_mean([1, 0], ["a", "a"])
    assert (one.mean, one.low, one.high) == (0.5, None, None)


def test_agreement_is_not_certainty() -> None:
    """Twenty right of twenty: Wilson's interval for 20 of 20 is [0.8389, 1], as tables have it."""
    estimate = clustered_mean([1.0] * 20, ["a", "b"] * 10)
    assert estimate.low == pytest.approx(0.8389, abs=1e-4)
    assert estimate.high == 1


def test_wilson_matches_scipy() -> None:
    from scipy.stats import binomtest

    expected = binomtest(7, 30).proportion_ci(method="wilson")
    assert wilson(7 / 30, 30) == pytest.approx((expected.low, expected.high))


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from("abcd")), min_size=1, max_size=40))
def test_an_interval_holds_its_mean_and_stays_within_0_and_1(pairs: list[tuple[float, str]]) -> None:
    estimate = clustered_mean([value for value, _ in pairs], [cluster for _, cluster in pairs])
    if estimate.low is not None and estimate.high is not None and estimate.mean is not None:
        assert 0 <= estimate.low <= estimate.mean + 1e-9
        assert estimate.mean - 1e-9 <= estimate.high <= 1
