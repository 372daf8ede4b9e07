"""Intervals and tests that respect the data: questions come in conversations, and ten conversations are ten, not 1,540.

Scores lie in [0, 1], one a question; `clusters` names each question's conversation. All intervals are at 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

FEW_CLUSTERS = 10
"""With so many conversations or fewer every report warns."""

SEED = 0
ENUMERATED_CLUSTERS = 20
"""Up to so many conversations all sign flips are counted, beyond a sample of them."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over `n` questions in `clusters` conversations with an interval clustered by conversation, and its
    `standard_error`; None where there is none."""

    mean: float | None
    low: float | None
    high: float | None
    n: int
    clusters: int
    standard_error: float | None = None

    @property
    def half_width(self) -> float | None:
        """Of the t interval before it is cut to what scores can be."""
        return _t(self.clusters - 1, 0.975) * self.standard_error if self.standard_error else None


def clustered_mean(values: Sequence[float], clusters: Sequence[str]) -> Estimate:
    """The mean of scores in [0, 1] with an interval clustered by conversation.

    The ratio estimator's cluster-robust variance (Cochran, Sampling Techniques, 1977, ch. 11) with a t quantile at
    clusters - 1 degrees of freedom. With fewer than two clusters there is no interval. Where all clusters agree to
    the digit (0 of 20, say) that variance is zero and says nothing: Wilson's interval for n takes its place.
    """
    estimate = clustered_ratio(values, [1.0] * len(values), clusters)
    if estimate.mean is None or estimate.low is None or estimate.high is None:
        return estimate
    low, high = estimate.low, estimate.high
    if not estimate.standard_error:
        low, high = wilson(estimate.mean, estimate.n)
    return Estimate(estimate.mean, max(0.0, low), min(1.0, high), *_sizes(clusters), estimate.standard_error)


def clustered_ratio(numerators: Sequence[float], denominators: Sequence[float], clusters: Sequence[str]) -> Estimate:
    """The ratio of two sums over the same questions, with the interval of `clustered_mean`, unbounded. No ratio where
    the denominators add up to 0."""
    n, groups = _sizes(clusters)
    total = float(np.sum(denominators))
    if n == 0 or total == 0:
        return Estimate(None, None, None, n, groups)
    ratio = float(np.sum(numerators)) / total
    if groups < 2:
        return Estimate(ratio, None, None, n, groups)
    residuals = cluster_sums(np.asarray(numerators, float) - ratio * np.asarray(denominators, float), clusters)
    variance = groups / (groups - 1) * float(residuals @ residuals) / total**2
    error = math.sqrt(variance) if variance >= 1e-18 else 0.0
    half = _t(groups - 1, 0.975) * error
    return Estimate(ratio, ratio - half, ratio + half, n, groups, error)


def wilson(rate: float, n: int) -> tuple[float, float]:
    """Wilson's score interval for a rate over n independent trials."""
    from scipy.special import ndtri

    z = float(ndtri(0.975))
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def naive(values: Sequence[float]) -> tuple[float, float] | None:
    """The interval that takes the questions for independent, which they are not: mean and t, unbounded, to be compared
    with. None below two questions."""
    if len(values) < 2:
        return None
    mean = float(np.mean(values))
    half = _t(len(values) - 1, 0.975) * math.sqrt(_simple_variance(values))
    return mean - half, mean + half


def design_effect(values: Sequence[float], estimate: Estimate) -> float | None:
    """How many times the variance of the mean is that of as many independent questions: n divided by it is what the
    questions are worth. None where there is no variance to compare with."""
    if estimate.standard_error is None or len(values) < 2 or not (simple := _simple_variance(values)):
        return None
    return estimate.standard_error**2 / simple


def _simple_variance(values: Sequence[float]) -> float:
    return float(np.var(values, ddof=1)) / len(values)


LEAST_BOOTSTRAPPED = 6
"""With fewer conversations resamples are too much alike for an interval of any use."""


def bootstrap(values: Sequence[float], clusters: Sequence[str], *, seed: int = SEED) -> tuple[float, float] | None:
    """A cluster bootstrap interval of the mean, studentised (bootstrap-t), 4,999 resamples of whole conversations.

    Studentised, because with ten conversations the percentile interval and BCa hold the true rate in 90 % of cases
    (with four in 80 %), and this one in 95 % (docs/experiments.md). None with fewer than six conversations, or where
    they agree. Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 12.
    """
    sizes = cluster_sums([1.0] * len(values), clusters)
    estimate = clustered_mean(values, clusters)
    groups = estimate.clusters
    if groups < LEAST_BOOTSTRAPPED or estimate.mean is None or not estimate.standard_error:
        return None
    sums = cluster_sums(values, clusters)
    drawn = _resamples(groups, seed)
    ns = drawn @ sizes
    means = drawn @ sums / ns
    # Of each resample's clusters: squared residual sums about its own mean, multiplied out.
    squares = drawn @ sums**2 - 2 * means * (drawn @ (sums * sizes)) + means**2 * (drawn @ sizes**2)
    errors = np.sqrt(groups / (groups - 1) * np.maximum(squares, 0)) / ns
    away = np.where(np.abs(means - estimate.mean) < 1e-12, 0.0, means - estimate.mean)
    # A resample whose clusters agree is infinitely sure of its mean; so many of them make an interval without a bound.
    with np.errstate(divide="ignore", invalid="ignore"):
        pivots = np.where(away == 0, 0.0, away / np.where(errors < 1e-9 * estimate.standard_error, 0.0, errors))
    low, high = np.quantile(pivots, [0.025, 0.975], method="nearest")
    return (
        max(0.0, estimate.mean - float(high) * estimate.standard_error),
        min(1.0, estimate.mean - float(low) * estimate.standard_error),
    )


@lru_cache(maxsize=32)
def _resamples(groups: int, seed: int) -> np.ndarray:
    """How often each cluster is drawn, shape (resamples, groups)."""
    return np.random.default_rng(seed).multinomial(groups, [1 / groups] * groups, size=4_999).astype(float)


# ---------------------------------------------------------------- two systems, the same questions


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of two systems on the same `n` questions in `clusters` conversations: the mean of a's score minus b's, its
    clustered interval, how many questions a wins, loses and ties; the p-values that belong to it, and the smallest
    true difference that the design would detect. None where there is none."""

    difference: float | None
    low: float | None
    high: float | None
    p_mcnemar: float | None
    p_permutation: float | None
    wins: int
    losses: int
    ties: int
    detectable: float | None
    n: int
    clusters: int


def paired(a: Sequence[float], b: Sequence[float], clusters: Sequence[str]) -> Comparison:
    """Compare two systems by their scores on the same questions, in the same order.

    Where no question tells the two apart the variance is zero and says nothing; the interval is then the one of n
    agreements, z²/(n + z²) to either side (Tango, 1998, with no discordant pair).
    """
    differences = np.asarray(a, float) - np.asarray(b, float)
    estimate = clustered_ratio(differences.tolist(), [1.0] * len(differences), clusters)
    low, high = estimate.low, estimate.high
    if estimate.mean is not None and low is not None and high is not None:
        if not estimate.standard_error:
            low, high = _of_agreement(estimate.mean, estimate.n, all_tied=not differences.any())
        low, high = max(-1.0, low), min(1.0, high)
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    binary = set(a) | set(b) <= {0.0, 1.0}
    return Comparison(
        difference=estimate.mean,
        low=low,
        high=high,
        p_mcnemar=mcnemar(wins, losses) if binary and estimate.n else None,
        p_permutation=sign_flip(cluster_sums(differences, clusters)) if estimate.n else None,
        wins=wins,
        losses=losses,
        ties=estimate.n - wins - losses,
        detectable=detectable(estimate.standard_error, estimate.clusters) if estimate.standard_error else None,
        n=estimate.n,
        clusters=estimate.clusters,
    )


def _of_agreement(difference: float, n: int, *, all_tied: bool) -> tuple[float, float]:
    if all_tied:
        half = wilson(0.0, n)[1]
        return -half, half
    # Of all scores with this mean difference, those of a coin that falls to a or b vary most.
    low, high = wilson((difference + 1) / 2, n)
    return 2 * low - 1, 2 * high - 1


def mcnemar(wins: int, losses: int) -> float:
    """McNemar's exact test, two-sided p: of the questions that only one of two systems gets right, does one get more?
    It takes the questions for independent; where conversations differ it is too sure."""
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5))) if wins + losses else 1.0


def sign_flip(sums: Sequence[float] | np.ndarray, *, seed: int = SEED) -> float:
    """The exact permutation test over conversations, two-sided p in (0, 1].

    Args:
        sums: a conversation each, the sum of its differences. Were the systems alike, each could as well have the
            other sign. All 2^k sign patterns are counted; beyond 20 conversations 9,999 drawn ones and the one seen.
    """
    sums = np.asarray(sums, float)
    # Patterns that differ in rounding only are ties, and ties count.
    threshold = abs(float(sums.sum())) - 1e-9 * float(np.abs(sums).sum())
    if len(sums) <= ENUMERATED_CLUSTERS:
        totals = np.zeros(1)
        for value in sums[1:]:
            totals = np.concatenate([totals + value, totals - value])
        # The patterns with the first sign turned are the mirror image of these.
        return float(np.mean(np.abs(totals + sums[:1].sum()) >= threshold))
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(9_999, len(sums)))
    return (1 + int((np.abs(signs @ sums) >= threshold).sum())) / 10_000


def detectable(standard_error: float, clusters: int) -> float:
    """The smallest true difference found at p < 0.05, two-sided, in about 80 % of repetitions, with a clustered t test:
    (t(0.975) + t(0.80)) standard errors. Source: Bloom, Minimum detectable effects, Evaluation Review, 1995."""
    return (_t(clusters - 1, 0.975) + _t(clusters - 1, 0.80)) * standard_error


def least_p(clusters: int) -> float:
    """The smallest p that the sign-flip test over so many conversations can give."""
    return 2.0 ** (1 - clusters) if 0 < clusters <= ENUMERATED_CLUSTERS else 1e-4 if clusters else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of a family of p-values, in their order; below 0.05 is significant within it."""
    corrected = [0.0] * len(p_values)
    so_far = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = so_far
    return corrected


def cluster_sums(values: Iterable[float], clusters: Sequence[str]) -> np.ndarray:
    """The sum of each cluster's values, in the order of the clusters' names, whatever the order of the questions."""
    _, positions = np.unique(np.asarray(clusters, str), return_inverse=True)
    return np.bincount(positions, weights=np.asarray(values, float)) if len(positions) else np.zeros(0)


def _sizes(clusters: Sequence[str]) -> tuple[int, int]:
    return len(clusters), len(set(clusters))


def _t(degrees: int, quantile: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, quantile))
