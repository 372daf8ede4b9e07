"""Accuracy from a few human labels and a judge's verdicts on all answers: prediction-powered inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from memometer.stats.intervals import Estimate, clustered_ratio


@dataclass(frozen=True, slots=True)
class PredictionPowered:
    """An accuracy that human labels correct. All values are rates in [0, 1].

    Attributes:
        estimate: The prediction-powered mean, with its interval clustered by conversation.
        labels_alone: The mean of the labels, weighted by their inclusion probabilities.
        judge: The mean of the judge's verdicts, uncorrected.
        labels: Number of labelled answers.
        weight: Weight of the verdicts in [0, 1]; 0 if they say nothing about the labels.
    """

    estimate: Estimate
    labels_alone: Estimate
    judge: Estimate
    labels: int
    weight: float


def prediction_powered(
    verdicts: Sequence[float],
    labels: Sequence[float | None],
    inclusion: Sequence[float],
    clusters: Sequence[str],
) -> PredictionPowered:
    """Estimate the accuracy of answers from a judge's verdicts on all and human labels on a random part of them.

    The mean verdict is corrected by the weighted difference of labels and verdicts where both exist. The estimate is
    unbiased for any judge, because the inclusion probabilities are known; a good judge makes its interval short. The
    weight of the verdicts minimises the variance (PPI++).

    Source: Angelopoulos, Duchi and Zrnic, PPI++: Efficient prediction-powered inference, 2023; Horvitz and Thompson,
    Journal of the American Statistical Association 47, 1952, for the inclusion weights.

    Args:
        verdicts: Judge score of each answer in [0, 1], shape (n,).
        labels: Human label of each answer in [0, 1], or None if it was not drawn, shape (n,).
        inclusion: Probability in (0, 1] with which each answer was drawn, shape (n,).
        clusters: Conversation of each answer, shape (n,).

    Returns:
        The estimate, the same from labels alone, and the uncorrected judge accuracy.

    Raises:
        ValueError: The lengths differ, or a labelled answer has no positive inclusion probability.
    """
    n = len(verdicts)
    if not n == len(labels) == len(inclusion) == len(clusters):
        raise ValueError(
            f"got {n} verdicts, {len(labels)} labels, {len(inclusion)} probabilities, {len(clusters)} clusters"
        )
    judged = np.asarray(verdicts, float)
    drawn = np.array([label is not None for label in labels], bool)
    probability = np.asarray(inclusion, float)
    if (probability[drawn] <= 0).any():
        raise ValueError("a labelled answer has inclusion probability 0")
    judge = clustered_ratio(judged.tolist(), [1.0] * n, clusters)
    if not drawn.any() or judge.mean is None:
        unknown = Estimate(None, None, None, n, judge.clusters)
        return PredictionPowered(unknown, unknown, judge, 0, 0.0)
    labelled = np.array([0.0 if label is None else float(label) for label in labels])
    weights = np.where(drawn, 1 / np.where(drawn, probability, 1.0), 0.0)
    weights *= n / weights.sum()
    label_mean, verdict_mean = float(weights @ labelled) / n, float(weights @ judged) / n
    # Each answer's part in the error of the estimate: of the labels alone, and per unit of the verdicts' weight.
    errors = weights * (labelled - label_mean)
    control = (judged - judge.mean) - weights * (judged - verdict_mean)
    variance = float(control @ control)
    weight = min(1.0, max(0.0, -float(errors @ control) / variance)) if variance > 0 else 0.0
    mean = label_mean + weight * (judge.mean - verdict_mean)
    return PredictionPowered(
        estimate=_clipped(clustered_ratio((mean + errors + weight * control).tolist(), [1.0] * n, clusters)),
        labels_alone=_clipped(clustered_ratio((label_mean + errors).tolist(), [1.0] * n, clusters)),
        judge=judge,
        labels=int(drawn.sum()),
        weight=weight,
    )


def _clipped(estimate: Estimate) -> Estimate:
    """Limit an estimate to [0, 1]."""
    mean, low, high = (
        None if v is None else min(1.0, max(0.0, v)) for v in (estimate.mean, estimate.low, estimate.high)
    )
    return Estimate(mean, low, high, estimate.n, estimate.clusters, estimate.standard_error)
