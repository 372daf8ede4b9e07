"""Tests of several systems against a reference: error rate, power and agreement with the single test."""

from __future__ import annotations

import numpy as np
import pytest

from memometer.stats.intervals import holm, sign_flip
from memometer.stats.max_t import max_t


def test_one_comparison_is_the_sign_flip_test() -> None:
    for seed in range(20):
        sums = np.random.default_rng(seed).normal(size=9)
        assert max_t([sums]) == pytest.approx([sign_flip(sums)])


def test_more_comparisons_never_lower_a_p_value() -> None:
    sums = np.random.default_rng(1).normal(0.5, size=(6, 8))
    single = [sign_flip(one) for one in sums]
    assert all(adjusted >= alone - 1e-12 for adjusted, alone in zip(max_t(sums), single, strict=True))


def test_a_family_that_holm_cannot_decide_is_decided() -> None:
    """Every system beats the reference in every one of ten conversations."""
    sums = np.abs(np.random.default_rng(2).normal(size=(28, 10)))
    assert min(holm([sign_flip(one) for one in sums])) > 0.05
    assert max(max_t(sums)) == pytest.approx(2 / 2**10)


def test_the_family_wise_error_rate_is_five_percent() -> None:
    """Seven systems that equal their reference, which all comparisons share; 400 runs over eight conversations."""
    rng = np.random.default_rng(3)
    errors = 0
    for _ in range(400):
        scores = rng.normal(size=(8, 8))
        errors += min(max_t(scores[1:] - scores[0])) <= 0.05
    assert errors / 400 <= 0.05 + 1.96 * np.sqrt(0.05 * 0.95 / 400)


def test_ties_and_empty_families() -> None:
    assert max_t(np.zeros((2, 5))) == [1.0, 1.0]
    assert max_t([]) == []
    assert max_t([[0.0] * 5, [1.0] * 5]) == [1.0, pytest.approx(2 / 2**5)]


def test_many_conversations_are_sampled() -> None:
    assert max_t(np.ones((2, 40))) == [1e-4, 1e-4]
