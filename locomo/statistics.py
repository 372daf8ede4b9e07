"""Intervals that respect the data: questions come in conversations, and ten conversations are ten, not 1,540."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over `n` questions in `clusters` conversations, with a 95 % interval; None where there is none."""

    mean: float | None
    low: float | None
    high: float | None
    n: int
    clusters: int


def clustered_mean(values: Sequence[float], clusters: Sequence[str], *, confidence: float = 0.95) -> Estimate:
    """The mean of scores in [0, 1] with an interval clustered by conversation.

    The ratio estimator's cluster-robust variance (Cochran, Sampling Techniques, 1977, ch. 11) with a t quantile at
    clusters - 1 degrees of freedom. With fewer than two clusters there is no interval. Where all clusters agree to
    the digit (0 of 20, say) that variance is zero and says nothing: Wilson's interval for n takes its place.
    """
    n, groups = len(values), len(set(clusters))
    if n == 0:
        return Estimate(None, None, None, 0, 0)
    mean = sum(values) / n
    if groups < 2:
        return Estimate(mean, None, None, n, groups)
    residuals: dict[str, float] = defaultdict(float)
    for value, cluster in zip(values, clusters, strict=True):
        residuals[cluster] += value - mean
    variance = groups / (groups - 1) * sum(r * r for r in residuals.values()) / n**2
    if variance < 1e-18:
        low, high = wilson(mean, n, confidence=confidence)
        return Estimate(mean, low, high, n, groups)
    from scipy.special import stdtrit

    half = float(stdtrit(groups - 1, 0.5 + confidence / 2)) * math.sqrt(variance)
    return Estimate(mean, max(0.0, mean - half), min(1.0, mean + half), n, groups)


def wilson(rate: float, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a rate over n independent trials."""
    from scipy.special import ndtri

    z = float(ndtri(0.5 + confidence / 2))
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
