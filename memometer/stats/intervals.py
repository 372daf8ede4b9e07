"""Confidence intervals and paired tests for scores of questions that are clustered by conversation.

Questions about one conversation are not independent, so the conversation is the unit of every interval and test.
Throughout, `values` holds one score in [0, 1] per question, shape (n,); `clusters` holds the conversation of each
question, shape (n,). All intervals are at 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

FEW_CLUSTERS = 10
"""At or below this number of conversations, reports warn that intervals are unreliable."""

READABLE_CLUSTERS = 4
"""With fewer conversations a clustered interval has too few degrees of freedom to be read."""

SEED = 0
ENUMERATED_CLUSTERS = 20
"""Up to this number of conversations the sign-flip test enumerates all patterns; beyond it, it samples them."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with an interval clustered by conversation. Fields that cannot be estimated are None.

    Attributes:
        mean: Mean score.
        low: Lower 95 % limit.
        high: Upper 95 % limit.
        n: Number of questions.
        clusters: Number of conversations.
        standard_error: Cluster-robust standard error of the mean.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int
    clusters: int
    standard_error: float | None = None

    @property
    def half_width(self) -> float | None:
        """Half the width of the t interval, before it is clipped to [0, 1]; None without a standard error."""
        return _t(self.clusters - 1, 0.975) * self.standard_error if self.standard_error else None


def clustered_mean(values: Sequence[float], clusters: Sequence[str]) -> Estimate:
    """Estimate the mean score with an interval clustered by conversation.

    Uses the cluster-robust variance of a ratio estimator and a t quantile with clusters - 1 degrees of freedom. If all
    clusters have the same mean, that variance is zero; Wilson's interval for n trials is used instead. Few clusters may
    agree by chance, so the interval is never narrower than the one that treats questions as independent.

    Source: Cochran, Sampling Techniques, 1977, ch. 11.

    Args:
        values: Scores in [0, 1], shape (n,).
        clusters: Conversation of each score, shape (n,).

    Returns:
        The estimate, clipped to [0, 1]; no interval with fewer than two clusters, no mean without values.
    """
    estimate = clustered_ratio(values, [1.0] * len(values), clusters)
    if estimate.mean is None or estimate.low is None or estimate.high is None:
        return estimate
    low, high = estimate.low, estimate.high
    if not estimate.standard_error:
        low, high = wilson(estimate.mean, estimate.n)
    low, high = _at_least_naive((low, high), values)
    return Estimate(estimate.mean, max(0.0, low), min(1.0, high), *_sizes(clusters), estimate.standard_error)


def clustered_ratio(numerators: Sequence[float], denominators: Sequence[float], clusters: Sequence[str]) -> Estimate:
    """Estimate the ratio of two sums over the same questions, with an interval clustered by conversation.

    Args:
        numerators: One value per question, shape (n,).
        denominators: One value per question, shape (n,).
        clusters: Conversation of each question, shape (n,).

    Returns:
        The estimate, not clipped; no mean if the denominators add up to 0, no interval with fewer than two clusters.
    """
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


def wilson(rate: float, n: float) -> tuple[float, float]:
    """Compute Wilson's score interval for a rate over independent trials.

    Source: Wilson, Journal of the American Statistical Association 22, 1927.

    Args:
        rate: Observed rate in [0, 1].
        n: Number of trials, at least 1; it may be an effective number.

    Returns:
        Lower and upper 95 % limits in [0, 1].
    """
    from scipy.special import ndtri

    z = float(ndtri(0.975))
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def naive(values: Sequence[float]) -> tuple[float, float] | None:
    """Compute the t interval that treats questions as independent, for comparison with the clustered one.

    Args:
        values: Scores, shape (n,).

    Returns:
        Lower and upper 95 % limits, not clipped; None with fewer than two values.
    """
    if len(values) < 2:
        return None
    mean = float(np.mean(values))
    half = _t(len(values) - 1, 0.975) * math.sqrt(_simple_variance(values))
    return mean - half, mean + half


def _at_least_naive(interval: tuple[float, float], values: Sequence[float]) -> tuple[float, float]:
    """Widen an interval to the limits of the naive one."""
    independent = naive(values)
    return (min(interval[0], independent[0]), max(interval[1], independent[1])) if independent else interval


def design_effect(values: Sequence[float], estimate: Estimate) -> float | None:
    """Compute the ratio of the clustered variance of the mean to its variance under independence.

    n divided by the design effect is the effective number of questions.

    Args:
        values: Scores, shape (n,).
        estimate: `clustered_mean` of these scores.

    Returns:
        The design effect; None if either variance is undefined or the independent one is zero.
    """
    if estimate.standard_error is None or len(values) < 2 or not (simple := _simple_variance(values)):
        return None
    return estimate.standard_error**2 / simple


def _simple_variance(values: Sequence[float]) -> float:
    return float(np.var(values, ddof=1)) / len(values)


MIN_BOOTSTRAP_CLUSTERS = 6
"""With fewer conversations the resamples are too similar to give a useful interval."""


def bootstrap(values: Sequence[float], clusters: Sequence[str], *, seed: int = SEED) -> tuple[float, float] | None:
    """Compute a studentised cluster bootstrap interval (bootstrap-t) from 4,999 resamples of whole conversations.

    With ten conversations the percentile and BCa intervals cover the true rate in 90 % of cases, this one in 95 %.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 12.

    Args:
        values: Scores in [0, 1], shape (n,).
        clusters: Conversation of each score, shape (n,).
        seed: Seed of the resampling.

    Returns:
        Lower and upper 95 % limits in [0, 1]; None with fewer than six conversations, or if they all have one mean.
    """
    sizes = cluster_sums([1.0] * len(values), clusters)
    estimate = clustered_mean(values, clusters)
    groups = estimate.clusters
    if groups < MIN_BOOTSTRAP_CLUSTERS or estimate.mean is None or not estimate.standard_error:
        return None
    sums = cluster_sums(values, clusters)
    drawn = _resamples(groups, seed)
    ns = drawn @ sizes
    means = drawn @ sums / ns
    # Sum of squared cluster residuals about each resample's own mean, expanded to matrix products.
    squares = drawn @ sums**2 - 2 * means * (drawn @ (sums * sizes)) + means**2 * (drawn @ sizes**2)
    errors = np.sqrt(groups / (groups - 1) * np.maximum(squares, 0)) / ns
    shifts = np.where(np.abs(means - estimate.mean) < 1e-12, 0.0, means - estimate.mean)
    # A resample whose clusters all agree has standard error 0, hence an infinite pivot; many of them leave the interval
    # unbounded.
    with np.errstate(divide="ignore", invalid="ignore"):
        pivots = np.where(shifts == 0, 0.0, shifts / np.where(errors < 1e-9 * estimate.standard_error, 0.0, errors))
    low, high = np.quantile(pivots, [0.025, 0.975], method="nearest")
    return (
        max(0.0, estimate.mean - float(high) * estimate.standard_error),
        min(1.0, estimate.mean - float(low) * estimate.standard_error),
    )


@lru_cache(maxsize=32)
def _resamples(groups: int, seed: int) -> np.ndarray:
    """Number of times each cluster is drawn in each resample, shape (resamples, groups)."""
    return np.random.default_rng(seed).multinomial(groups, [1 / groups] * groups, size=4_999).astype(float)


# ---------------------------------------------------------------- paired comparison of two systems


@dataclass(frozen=True, slots=True)
class Comparison:
    """Paired comparison of two systems, a and b, on the same questions. Undefined fields are None.

    Attributes:
        difference: Mean score of a minus mean score of b.
        low: Lower 95 % limit of the difference, clustered by conversation.
        high: Upper 95 % limit.
        p_mcnemar: p-value of McNemar's exact test; None unless all scores are 0 or 1.
        p_permutation: p-value of the sign-flip permutation test over conversations.
        wins: Questions on which a scores more than b.
        losses: Questions on which a scores less than b.
        ties: Questions on which both score the same.
        detectable: Smallest true difference that the interval excludes zero for with about 80 % power.
        standard_error: Cluster-robust standard error of the difference.
        n: Number of questions.
        clusters: Number of conversations.
    """

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
    standard_error: float | None = None


def paired(a: Sequence[float], b: Sequence[float], clusters: Sequence[str]) -> Comparison:
    """Compare two systems by their scores on the same questions.

    If no question separates the two systems the variance is zero; the interval is then ±z²/(n + z²). As in
    `clustered_mean`, the interval is never narrower than the naive one.

    Source: Tango, Statistics in Medicine 17, 1998, for the interval without discordant pairs.

    Args:
        a: Scores of the first system in [0, 1], shape (n,).
        b: Scores of the second system on the same questions in the same order, shape (n,).
        clusters: Conversation of each question, shape (n,).

    Returns:
        The comparison of a with b.
    """
    differences = np.asarray(a, float) - np.asarray(b, float)
    estimate = clustered_ratio(differences.tolist(), [1.0] * len(differences), clusters)
    low, high = estimate.low, estimate.high
    if estimate.mean is not None and low is not None and high is not None:
        if not estimate.standard_error:
            low, high = _zero_variance_interval(estimate.mean, estimate.n, all_tied=not differences.any())
        low, high = _at_least_naive((low, high), differences.tolist())
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
        standard_error=estimate.standard_error,
    )


def _zero_variance_interval(difference: float, n: int, *, all_tied: bool) -> tuple[float, float]:
    if all_tied:
        half = wilson(0.0, n)[1]
        return -half, half
    # Among scores with this mean difference, differences of -1 and 1 have the largest variance: a conservative bound.
    low, high = wilson((difference + 1) / 2, n)
    return 2 * low - 1, 2 * high - 1


def mcnemar(wins: int, losses: int) -> float:
    """Compute the two-sided p-value of McNemar's exact test.

    The test treats questions as independent, so it is anticonservative if conversations differ.

    Args:
        wins: Questions that only the first system answers correctly.
        losses: Questions that only the second system answers correctly.

    Returns:
        The p-value; 1.0 without discordant questions.
    """
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5))) if wins + losses else 1.0


def sign_flip(sums: Sequence[float] | np.ndarray, *, seed: int = SEED) -> float:
    """Compute the two-sided p-value of the sign-flip permutation test over conversations.

    Under the null hypothesis each conversation's sum of differences is equally likely to have either sign. With k <= 20
    conversations all 2^k sign patterns are enumerated; beyond that 9,999 patterns are sampled.

    Args:
        sums: Sum of the score differences of each conversation, shape (k,).
        seed: Seed of the sampled patterns.

    Returns:
        The p-value in (0, 1].
    """
    sums = np.asarray(sums, float)
    # Totals that differ only by rounding count as ties, and ties count as extreme.
    threshold = abs(float(sums.sum())) - 1e-9 * float(np.abs(sums).sum())
    if len(sums) <= ENUMERATED_CLUSTERS:
        totals = np.zeros(1)
        for value in sums[1:]:
            totals = np.concatenate([totals + value, totals - value])
        # Patterns with the first sign flipped are mirror images of these and need not be enumerated.
        return float(np.mean(np.abs(totals + sums[:1].sum()) >= threshold))
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(9_999, len(sums)))
    return (1 + int((np.abs(signs @ sums) >= threshold).sum())) / 10_000


def detectable(standard_error: float, clusters: int, *, alpha: float = 0.05) -> float:
    """Compute the minimum detectable difference: two-sided clustered t test, power 0.80.

    It is (t(1 - alpha / 2) + t(0.80)) standard errors with clusters - 1 degrees of freedom.

    Source: Bloom, Minimum detectable effects, Evaluation Review 19, 1995.

    Args:
        standard_error: Cluster-robust standard error of the difference.
        clusters: Number of conversations, at least 2.
        alpha: The level of the test.

    Returns:
        The difference, in the unit of the standard error.
    """
    return (_t(clusters - 1, 1 - alpha / 2) + _t(clusters - 1, 0.80)) * standard_error


def min_sign_flip_p(clusters: int) -> float:
    """Return the smallest p-value that the sign-flip test over this number of conversations can give."""
    return 2.0 ** (1 - clusters) if 0 < clusters <= ENUMERATED_CLUSTERS else 1e-4 if clusters else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Apply Holm's step-down correction to a family of p-values.

    Source: Holm, Scandinavian Journal of Statistics 6, 1979.

    Args:
        p_values: The p-values of the family, shape (k,).

    Returns:
        The adjusted p-values in the same order, at most 1; below 0.05 is significant within the family.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def cluster_sums(values: Iterable[float], clusters: Sequence[str]) -> np.ndarray:
    """Sum the values of each cluster.

    Args:
        values: One value per question, shape (n,).
        clusters: Conversation of each question, shape (n,).

    Returns:
        One sum per cluster, in the sorted order of the cluster names, shape (k,).
    """
    _, positions = np.unique(np.asarray(clusters, str), return_inverse=True)
    return np.bincount(positions, weights=np.asarray(values, float)) if len(positions) else np.zeros(0)


def _sizes(clusters: Sequence[str]) -> tuple[int, int]:
    return len(clusters), len(set(clusters))


def _t(degrees: int, quantile: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, quantile))
