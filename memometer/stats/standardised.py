"""Direct standardisation: a mean score as if all systems had the same distribution of a covariate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

from memometer.stats.intervals import Estimate, clustered_ratio


def standardised_mean(
    scores: Sequence[float], strata: Sequence[Hashable], weights: Mapping[Hashable, float], clusters: Sequence[str]
) -> Estimate:
    """Average scores with fixed weights of strata in place of their own shares.

    Source: direct standardisation, Breslow and Day, Statistical Methods in Cancer Research II, 1987, chapter 2.

    Args:
        scores: Scores in [0, 1], shape (n,).
        strata: Stratum of each score, shape (n,).
        weights: Stratum -> its weight; strata without a score are left out, and the others weigh more.
        clusters: Conversation of each score, shape (n,).

    Returns:
        The mean with its interval, clustered by conversation. The weights are taken as known.
    """
    sizes = Counter(strata)
    each = [weights.get(stratum, 0.0) / sizes[stratum] for stratum in strata]
    return clustered_ratio([w * score for w, score in zip(each, scores, strict=True)], each, clusters)
