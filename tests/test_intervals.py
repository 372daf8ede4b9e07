"""Statistics against SciPy, statsmodels, figures computed by other means, and what they promise in the long run."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats import contingency_tables
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from locomo.dataset import DATA
from memometer.stats import power
from memometer.stats.intervals import (
    bootstrap,
    cluster_sums,
    clustered_mean,
    clustered_ratio,
    design_effect,
    detectable,
    holm,
    mcnemar,
    min_sign_flip_p,
    naive,
    paired,
    sign_flip,
    wilson,
)
from tests.conftest import sampled

EXACT = 1e-9
SIZES = (38, 20, 38, 50, 44, 31, 37, 48, 39, 39)
"""A quarter of LOCOMO's conversations."""

scored = st.lists(
    st.tuples(
        st.sampled_from([0.0, 1 / 3, 0.5, 1.0]), st.sampled_from([0.0, 1 / 3, 0.5, 1.0]), st.sampled_from("abcd")
    ),
    min_size=1,
    max_size=40,
)


def draw(rng: np.random.Generator, rate: float, *, correlation: float = 0.02) -> tuple[list[float], list[str]]:
    """Right and wrong answers whose rate differs by conversation (beta-binomial)."""
    a = (1 - correlation) / correlation
    rates = rng.beta(rate * a, (1 - rate) * a, len(SIZES))
    values = [rng.random(n) < p for n, p in zip(SIZES, rates, strict=True)]
    return np.concatenate(values).astype(float).tolist(), [f"c{i}" for i, n in enumerate(SIZES) for _ in range(n)]


@pytest.fixture(scope="module")
def runs() -> dict[str, tuple[dict[str, list[float]], list[str]]]:
    """Two published full-context runs, by rule for their three verdicts: (scores, conversations)."""
    folder = Path(os.environ.get("LOCOMO_PATH") or DATA / "locomo10.json").parent / "published"
    found = {}
    for name in ("full-context-gpt-4.1-mini-cot", "full-context-gpt-4o-mini-cot"):
        if not (folder / f"{name}.json").exists():
            pytest.skip(f"{folder} holds no published runs")
        answers = json.loads((folder / f"{name}.json").read_bytes())["detailed_results"]
        shares = [
            (user, sum(item["llm_judgments"].values()) / 3)
            for user, items in answers.items()
            for item in sorted(items, key=lambda item: item["question_id"])
        ]
        users = [user for user, _ in shares]
        found[name] = (
            {"mean": [share for _, share in shares], "majority": [float(share > 0.5) for _, share in shares]},
            users,
        )
    return found


def half(interval: Any) -> float:
    low, high = interval if isinstance(interval, tuple) else (interval.low, interval.high)
    return 100 * (high - low) / 2


def by_ols(values: list[float], clusters: list[str]) -> tuple[Any, Any]:
    """The mean as a regression on nothing, cluster-robust with the small-sample factor, and as if independent."""
    groups = np.unique(clusters, return_inverse=True)[1]
    model = OLS(np.array(values), np.ones(len(values)))
    return model.fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True), model.fit()


# ---------------------------------------------------------------- one system


def test_clustered_mean_by_hand() -> None:
    """Clusters 1/2, 2/2 and 0/2: mean 0.5, residual sums 0, 1, -1, variance 3/2 * 2 / 36, t(2) = 4.3027."""
    estimate = clustered_mean([1, 0, 1, 1, 0, 0], ["a", "a", "b", "b", "c", "c"])
    half = 4.302652729911275 * math.sqrt(3 / 2 * 2 / 36)
    assert estimate.mean == 0.5
    assert estimate.low == max(0.0, 0.5 - half)
    assert estimate.high == min(1.0, 0.5 + half)
    assert (estimate.n, estimate.clusters) == (6, 3)


@pytest.mark.parametrize("seed", range(5))
def test_the_clustered_interval_is_that_of_a_cluster_robust_regression(seed: int) -> None:
    values, clusters = draw(np.random.default_rng(seed), 0.7)
    estimate = clustered_mean(values, clusters)
    robust, plain = by_ols(values, clusters)
    assert estimate.mean == pytest.approx(robust.params[0], abs=EXACT)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(robust.conf_int()[0]), abs=EXACT)
    assert naive(values) == pytest.approx(tuple(plain.conf_int()[0]), abs=EXACT)
    assert design_effect(values, estimate) == pytest.approx((robust.bse[0] / plain.bse[0]) ** 2, abs=EXACT)


def test_published_runs_have_the_known_half_widths(runs: Any) -> None:
    """Half-widths in points: clustered, naive."""
    for name, rule, score, clustered, simple in (
        ("full-context-gpt-4.1-mini-cot", "majority", 92.66, 1.92, 1.30),
        ("full-context-gpt-4o-mini-cot", "majority", 79.94, 2.92, 2.00),
        ("full-context-gpt-4.1-mini-cot", "mean", 92.62, 1.94, 1.29),
        ("full-context-gpt-4o-mini-cot", "mean", 79.89, 2.88, 1.99),
    ):
        values, clusters = runs[name][0][rule], runs[name][1]
        estimate = clustered_mean(values, clusters)
        assert (estimate.n, estimate.clusters) == (1540, 10)
        assert estimate.mean is not None
        assert round(100 * estimate.mean, 2) == score
        assert round(half(estimate), 2) == clustered
        assert round(half(naive(values)), 2) == simple
        robust, plain = by_ols(values, clusters)
        assert estimate.standard_error == pytest.approx(robust.bse[0], abs=EXACT)
        assert design_effect(values, estimate) == pytest.approx((robust.bse[0] / plain.bse[0]) ** 2, abs=EXACT)


def test_singleton_clusters_are_the_ordinary_t_interval() -> None:
    values = [0.2, 0.4, 0.9, 0.5, 0.7]
    estimate = clustered_mean(values, list("abcde"))
    mean = sum(values) / 5
    low, high = stats.t.interval(0.95, 4, loc=mean, scale=stats.sem(values))
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=EXACT)
    assert naive(values) == pytest.approx((low, high), abs=EXACT)
    assert design_effect(values, estimate) == pytest.approx(1.0)


def test_no_interval_where_there_is_none() -> None:
    assert clustered_mean([], []).mean is None
    one = clustered_mean([1, 0], ["a", "a"])
    assert (one.mean, one.low, one.high) == (0.5, None, None)
    assert naive([1.0]) is None
    assert design_effect([1.0, 1.0], clustered_mean([1.0, 1.0], ["a", "b"])) is None
    assert clustered_ratio([1, -1], [1, -1], ["a", "b"]).mean is None


def test_agreement_is_not_certainty() -> None:
    """Twenty right of twenty: Wilson's interval for 20 of 20 is [0.8389, 1], as tables have it."""
    estimate = clustered_mean([1.0] * 20, ["a", "b"] * 10)
    assert estimate.low == pytest.approx(0.8389, abs=1e-4)
    assert estimate.high == 1


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_matches_statsmodels(counts: tuple[int, int]) -> None:
    right, n = counts
    assert wilson(right / n, n) == pytest.approx(proportion_confint(right, n, method="wilson"), abs=EXACT)


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from("abcd")), min_size=1, max_size=40))
def test_an_interval_holds_its_mean_and_stays_within_0_and_1(pairs: list[tuple[float, str]]) -> None:
    estimate = clustered_mean([value for value, _ in pairs], [cluster for _, cluster in pairs])
    if estimate.low is not None and estimate.high is not None and estimate.mean is not None:
        assert 0 <= estimate.low <= estimate.mean + 1e-9
        assert estimate.mean - 1e-9 <= estimate.high <= 1


def test_the_clustered_interval_holds_the_true_rate_in_95_percent_and_the_naive_one_does_not() -> None:
    rng = np.random.default_rng(7)
    covered, fooled = [], []
    for _ in range(1500):
        values, clusters = draw(rng, 0.75)
        estimate, simple = clustered_mean(values, clusters), naive(values)
        assert simple is not None
        assert estimate.low is not None
        assert estimate.high is not None
        covered.append(estimate.low <= 0.75 <= estimate.high)
        fooled.append(simple[0] <= 0.75 <= simple[1])
    assert 0.93 <= np.mean(covered) <= 0.97
    assert np.mean(fooled) < 0.89


def test_the_bootstrap_holds_it_too() -> None:
    rng = np.random.default_rng(8)
    covered = []
    for _ in range(500):
        interval = bootstrap(*draw(rng, 0.75))
        assert interval is not None
        covered.append(interval[0] <= 0.75 <= interval[1])
    assert 0.93 <= np.mean(covered) <= 0.97


def test_the_bootstrap_is_that_of_resampled_conversations() -> None:
    """Against resampling written out, question by question, with draws of its own."""
    values, clusters = draw(np.random.default_rng(3), 0.6)
    groups = {
        c: np.array([v for v, of in zip(values, clusters, strict=True) if of == c]) for c in sorted(set(clusters))
    }
    estimate = clustered_mean(values, clusters)
    rng = np.random.default_rng(99)
    pivots = []
    for _ in range(4000):
        drawn = [groups[name] for name in rng.choice(list(groups), len(groups))]
        again = clustered_mean(np.concatenate(drawn).tolist(), [str(i) for i, g in enumerate(drawn) for _ in g])
        assert again.standard_error
        pivots.append((again.mean - estimate.mean) / again.standard_error)  # type: ignore[operator]
    low, high = np.quantile(pivots, [0.025, 0.975])
    found = bootstrap(values, clusters)
    assert found == pytest.approx(
        (estimate.mean - high * estimate.standard_error, estimate.mean - low * estimate.standard_error), abs=0.01
    )
    assert bootstrap(values, clusters) == found, "the same draws every time"
    order = np.random.default_rng(0).permutation(len(values))
    assert bootstrap([values[i] for i in order], [clusters[i] for i in order]) == pytest.approx(found, abs=EXACT)


def test_too_few_conversations_are_not_resampled() -> None:
    values, clusters = draw(np.random.default_rng(0), 0.5)
    few = [i for i, c in enumerate(clusters) if c < "c5"]
    assert bootstrap([values[i] for i in few], [clusters[i] for i in few]) is None
    assert bootstrap([1.0] * len(values), clusters) is None


# ---------------------------------------------------------------- two systems


def test_a_paired_comparison_is_a_cluster_robust_regression_of_the_differences(runs: Any) -> None:
    (first, clusters), (second, _) = runs.values()
    for rule in ("mean", "majority"):
        a, b = first[rule], second[rule]
        found = paired(a, b, clusters)
        robust, _ = by_ols([x - y for x, y in zip(a, b, strict=True)], clusters)
        assert (found.difference, found.low, found.high) == pytest.approx(
            (robust.params[0], *robust.conf_int()[0]), abs=EXACT
        )
        assert found.p_permutation == 2 / 2**10, "ten of ten conversations prefer the first"
        assert found.detectable == pytest.approx((2.262157162740992 + 0.883403859685) * robust.bse[0], abs=1e-9)
        assert found.wins + found.losses + found.ties == 1540
        flips = stats.permutation_test((cluster_sums(np.subtract(a, b), clusters),), np.sum,
                                       permutation_type="samples", n_resamples=10**6)  # fmt: skip
        assert found.p_permutation == pytest.approx(flips.pvalue, abs=EXACT)
    table = [[0, found.wins], [found.losses, 0]]
    assert found.p_mcnemar == pytest.approx(contingency_tables.mcnemar(table, exact=True).pvalue, rel=EXACT)
    assert paired(first["mean"], second["mean"], clusters).p_mcnemar is None, "thirds are no wins and losses"


def test_pairing_wins_back_what_clustering_costs(runs: Any) -> None:
    (first, clusters), (second, _) = runs.values()
    a, b = (clustered_mean(of["mean"], clusters) for of in (first, second))
    assert a.standard_error is not None
    assert b.standard_error is not None
    apart = math.hypot(a.standard_error, b.standard_error)
    found = paired(first["mean"], second["mean"], clusters)
    assert found.high is not None
    assert found.low is not None
    assert (found.high - found.low) / 2 / 2.262157 < 0.75 * apart


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_matches_statsmodels(wins: int, losses: int) -> None:
    expected = contingency_tables.mcnemar([[5, wins], [losses, 7]], exact=True).pvalue
    assert mcnemar(wins, losses) == pytest.approx(min(1.0, expected), abs=EXACT)


@given(st.lists(st.integers(-20, 20).map(float), min_size=2, max_size=8))
def test_sign_flips_match_scipy(sums: list[float]) -> None:
    expected = stats.permutation_test((np.array(sums),), np.sum, permutation_type="samples", n_resamples=10**6).pvalue
    assert sign_flip(sums) == pytest.approx(min(1.0, expected), abs=EXACT)


def test_many_conversations_are_sampled_with_the_observed_pattern_among_them() -> None:
    rng = np.random.default_rng(5)
    alike, apart = rng.normal(0, 1, 40), rng.normal(3, 1, 40)
    exact, sampled = sign_flip(alike[:20]), sign_flip(np.concatenate([alike[:20], np.zeros(5)]))
    assert sampled == pytest.approx(exact, abs=0.02), "conversations without a difference change nothing"
    assert sign_flip(apart) == 1e-4 == min_sign_flip_p(40), "never zero"


def test_the_sign_flip_test_is_right_where_nothing_differs() -> None:
    rng = np.random.default_rng(11)
    p_values = np.array([sign_flip(rng.standard_t(3, size=10)) for _ in range(2000)])
    for level in (0.05, 0.2, 0.5):
        assert abs(float((p_values <= level).mean()) - level) < 3 * math.sqrt(level * (1 - level) / 2000) + 1 / 1024


@sampled(6)  # theirs collects garbage at each call
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_matches_statsmodels(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist(), abs=EXACT)


@given(scored)
def test_a_comparison_turned_round_is_its_mirror_image(pairs: list[tuple[float, float, str]]) -> None:
    a, b, clusters = ([row[i] for row in pairs] for i in range(3))
    there, back = paired(a, b, clusters), paired(b, a, clusters)  # type: ignore[arg-type]
    assert there.difference == pytest.approx(-back.difference, abs=1e-12)  # type: ignore[operator]
    if there.low is not None and back.high is not None:
        assert there.low == pytest.approx(-back.high, abs=1e-9)
        assert there.detectable == pytest.approx(back.detectable)
    assert (there.wins, there.losses, there.ties) == (back.losses, back.wins, back.ties)
    assert (there.p_mcnemar, there.p_permutation) == (back.p_mcnemar, back.p_permutation)


@given(scored, st.randoms(use_true_random=False))
def test_the_order_of_the_questions_changes_nothing(pairs: list[tuple[float, float, str]], random: Any) -> None:
    shuffled = random.sample(pairs, len(pairs))
    first, second = (paired(*([row[i] for row in of] for i in range(3))) for of in (pairs, shuffled))  # type: ignore[arg-type]
    for name in ("difference", "low", "high", "p_mcnemar", "p_permutation", "detectable"):
        assert getattr(first, name) == pytest.approx(getattr(second, name), abs=1e-9), name


@given(scored)
def test_a_p_is_a_probability_and_never_zero(pairs: list[tuple[float, float, str]]) -> None:
    found = paired(*([row[i] for row in pairs] for i in range(3)))  # type: ignore[arg-type]
    assert found.p_permutation is not None
    assert min_sign_flip_p(found.clusters) <= found.p_permutation <= 1
    assert found.p_mcnemar is None or 0 < found.p_mcnemar <= 1
    if found.low is not None and found.high is not None and found.difference is not None:
        assert -1 <= found.low <= found.difference + 1e-9
        assert found.difference - 1e-9 <= found.high <= 1


def test_two_systems_that_never_differ_may_differ_on_the_next_question() -> None:
    found = paired([1, 0, 1, 0], [1, 0, 1, 0], list("aabb"))
    assert (found.difference, found.p_mcnemar, found.p_permutation, found.ties) == (0, 1, 1, 4)
    assert found.high == pytest.approx(1.959964**2 / (4 + 1.959964**2))
    assert found.low == -found.high
    always = paired([1.0] * 50, [0.0] * 50, ["a", "b"] * 25)
    assert always.low is not None
    assert 0.8 < always.low < 1


def test_the_detectable_difference_is_detected_in_80_percent() -> None:
    """Conversations whose true difference is the detectable one, as a t test over their means sees them."""
    rng = np.random.default_rng(2)
    true = detectable(1.0, 10)
    seen = rng.normal(true, math.sqrt(10), size=(20_000, 10))
    t = seen.mean(axis=1) / (seen.std(axis=1, ddof=1) / math.sqrt(10))
    assert float((np.abs(t) > 2.262157).mean()) == pytest.approx(0.80, abs=0.01)


def test_sums_go_by_the_name_of_the_cluster() -> None:
    assert cluster_sums([1, 2, 4], ["b", "a", "b"]).tolist() == [2, 5]
    assert cluster_sums([], []).tolist() == []


def test_a_design_that_no_test_can_find_anything_with_is_named() -> None:
    assert power.smallest_difference(669, 4, 6) is None, "2^-3 times 6 comparisons"
    assert power.smallest_difference(669, 4, 1) is None
    few, many = power.smallest_difference(100, 10, 6), power.smallest_difference(1540, 10, 6)
    assert few is not None
    assert many is not None
    assert few == pytest.approx(many * (1540 / 100) ** 0.5)
    assert few > power.smallest_difference(100, 10, 1)  # type: ignore[operator]
    advice = power.sentence((669, 4), {"--split all": (1540, 10)}, 6)
    assert "cannot find any difference" in advice
    assert "7 points with --split all" in advice
    assert power.sentence((669, 4), {}, 0) == ""
