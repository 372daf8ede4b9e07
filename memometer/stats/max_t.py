"""Tests of several systems against a reference, adjusted for multiple testing by the maximum of their statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from memometer.stats.intervals import ENUMERATED_CLUSTERS, SEED


def max_t(sums: Sequence[Sequence[float]] | np.ndarray, *, seed: int = SEED) -> list[float]:
    """Adjust the sign-flip tests of several comparisons by the step-down maximum of their statistics.

    All comparisons flip the same conversations together, so the adjustment uses their correlation. Holm's correction
    does not: with ten conversations it can find nothing in a family of 26 or more. This one can in a family of any
    size. The statistic of a comparison is the absolute sum of its differences, divided by the root of the sum of their
    squares, which no flip changes. Up to 20 conversations all 2^k sign patterns are enumerated; beyond that 9,999 are
    sampled. The adjustment controls the family-wise error rate.

    Source: Westfall and Young, Resampling-Based Multiple Testing, 1993, algorithm 2.8.

    Args:
        sums: Sum of the score differences of each conversation, shape (comparisons, conversations). A conversation
            without questions of a comparison has the sum 0.
        seed: Seed of the sampled patterns.

    Returns:
        The adjusted p-values in (0, 1], shape (comparisons,), at least as large as those of `sign_flip`.
    """
    values = np.asarray(sums, float)
    if not values.size:
        return [1.0] * len(values)
    scale = np.sqrt((values**2).sum(axis=1, keepdims=True))
    scaled = np.divide(values, scale, out=np.zeros_like(values), where=scale > 0)
    observed = np.abs(scaled.sum(axis=1))
    order = np.argsort(-observed, kind="stable")
    exceeded = np.zeros(len(values))
    patterns = 0
    for signs in _sign_patterns(values.shape[1], seed):
        flipped = np.abs(signs @ scaled.T)[:, order]
        # Each comparison is tested against the maximum over itself and the comparisons with smaller statistics.
        maxima = np.maximum.accumulate(flipped[:, ::-1], axis=1)[:, ::-1]
        # Totals that differ only by rounding count as ties, and ties count as extreme.
        exceeded += (maxima >= observed[order] - 1e-9).sum(axis=0)
        patterns += len(signs)
    sampled = values.shape[1] > ENUMERATED_CLUSTERS
    p_values = np.maximum.accumulate((exceeded + sampled) / (patterns + sampled))
    adjusted = np.empty(len(values))
    adjusted[order] = p_values
    return [float(p) for p in adjusted]


def _sign_patterns(clusters: int, seed: int) -> Iterator[np.ndarray]:
    """Yield blocks of sign patterns, shape (patterns, clusters)."""
    if clusters > ENUMERATED_CLUSTERS:
        yield np.random.default_rng(seed).choice([-1.0, 1.0], size=(9_999, clusters))
        return
    # Patterns with the first sign flipped are mirror images of these and need not be enumerated.
    numbers = np.arange(2 ** (clusters - 1))
    for start in range(0, len(numbers), 65_536):
        block = numbers[start : start + 65_536, None]
        bits = (block >> np.arange(clusters - 1)) & 1
        yield np.hstack([np.ones((len(block), 1)), 1.0 - 2.0 * bits])
