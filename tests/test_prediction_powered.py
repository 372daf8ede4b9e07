"""Accuracy from a few human labels and a judge's verdicts: bias, coverage, and the cases at the edge."""

from __future__ import annotations

import numpy as np
import pytest

from memometer.stats.prediction_powered import PredictionPowered, prediction_powered


def _simulated(seed: int, conversations: int, labels: int = 100) -> PredictionPowered:
    """669 answers, 30 % of them right, a judge that errs in 15 % of both kinds, labels stratified by verdict."""
    rng = np.random.default_rng(seed)
    clusters = rng.integers(conversations, size=669)
    truth = (rng.random(669) < np.clip(0.30 + rng.normal(0, 0.05, conversations), 0, 1)[clusters]).astype(float)
    verdicts = np.where(rng.random(669) < 0.15, 1 - truth, truth)
    drawn: list[float | None] = [None] * 669
    inclusion = np.zeros(669)
    for verdict in (0, 1):
        stratum = np.flatnonzero(verdicts == verdict)
        inclusion[stratum] = labels / 2 / len(stratum)
        for i in rng.choice(stratum, labels // 2, replace=False):
            drawn[i] = truth[i]
    return prediction_powered(verdicts.tolist(), drawn, inclusion.tolist(), [str(c) for c in clusters])


@pytest.mark.parametrize("conversations", [4, 10])
def test_labels_correct_a_judge_that_errs(conversations: int) -> None:
    found = [_simulated(seed, conversations) for seed in range(300)]
    estimates = [one.estimate for one in found]
    assert np.mean([one.judge.mean for one in found]) == pytest.approx(0.36, abs=0.01)
    assert np.mean([one.mean for one in estimates]) == pytest.approx(0.30, abs=0.01)
    covered = np.mean([one.low <= 0.30 <= one.high for one in estimates])  # type: ignore[operator]
    assert covered >= 0.93 - 1.96 * np.sqrt(0.95 * 0.05 / 300)
    errors = [np.mean([e.standard_error for e in es]) for es in (estimates, [one.labels_alone for one in found])]
    assert errors[0] < errors[1]


def test_all_labels_are_the_truth() -> None:
    truth = [1.0, 0.0, 1.0, 1.0]
    found = prediction_powered([0.0, 1.0, 1.0, 0.0], truth, [1.0] * 4, ["a", "a", "b", "b"])
    assert found.estimate.mean == pytest.approx(0.75)


def test_a_judge_without_information_has_no_weight() -> None:
    found = prediction_powered([1.0] * 8, [1.0, 0.0, None, None] * 2, [0.5] * 8, list("aabbccdd"))
    assert (found.weight, found.estimate.mean) == (0.0, pytest.approx(0.5))


def test_no_labels_give_no_estimate() -> None:
    found = prediction_powered([1.0, 0.0], [None, None], [0.5, 0.5], ["a", "b"])
    assert found.estimate.mean is None
    assert found.judge.mean == pytest.approx(0.5)


def test_a_label_needs_its_inclusion_probability() -> None:
    with pytest.raises(ValueError, match="probability 0"):
        prediction_powered([1.0], [1.0], [0.0], ["a"])
