"""Variance components of scores: conversations, questions, repeated answers and repeated verdicts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVELS = ("conversations", "questions", "answers", "verdicts")
"""From the coarsest to the finest; each is nested in the one before it."""

Place = tuple[str, str, int, int]
"""(conversation, question, number of the answer, number of the verdict) of a score."""


@dataclass(frozen=True, slots=True)
class VarianceComponents:
    """The parts of the variance of a score and of a mean score.

    Attributes:
        variance: Level -> variance of its effect, at least 0; None if no unit of the level was repeated, so that it is
            part of the next coarser level.
        share_of_mean: Level -> its share in the variance of the mean score, 0 to 1.
        standard_error: Standard error of the mean score.
        units: Level -> number of units.
    """

    variance: dict[str, float | None]
    share_of_mean: dict[str, float]
    standard_error: float
    units: dict[str, int]


def variance_components(scores: Sequence[float], places: Sequence[Place]) -> VarianceComponents | None:
    """Split the variance of scores into nested random effects.

    The method of moments: the sum of squares between the units of each level is set equal to its expectation, which
    holds for unequal numbers of units too. Negative solutions become 0.

    Source: Henderson, Biometrics 9, 1953, method 1; Searle, Casella and McCulloch, Variance Components, 1992.

    Args:
        scores: The scores, shape (n,).
        places: Where each score belongs, shape (n,).

    Returns:
        The components; None with fewer than two conversations.
    """
    values = np.asarray(scores, float)
    n = len(values)
    groupings = [[place[: level + 1] for place in places] for level in range(4)]
    codes = [np.zeros(n, int), *(np.unique(_numbered(keys), return_inverse=True)[1] for keys in groupings)]
    units = [int(code.max()) + 1 if n else 0 for code in codes]
    if n < 2 or units[1] < 2:
        return None
    # A level without repeats cannot be told apart from the one above it.
    levels = [level for level in range(1, 5) if level == 1 or units[level] > units[level - 1]]
    between = [_squares(values, codes[level]) for level in (0, *levels)]
    weights = [[_weight(codes[group], codes[level]) for level in levels] for group in (0, *levels)]
    matrix = np.diff(np.array(weights), axis=0)
    found = np.clip(np.linalg.lstsq(matrix, np.diff(between), rcond=None)[0], 0.0, None)
    # The mean over all scores: each unit weighs as its scores.
    parts = [
        float(variance) * float((np.bincount(codes[level]) ** 2).sum()) / n**2
        for variance, level in zip(found, levels, strict=True)
    ]
    total = sum(parts)
    variance: dict[str, float | None] = dict.fromkeys(LEVELS)
    shares = dict.fromkeys(LEVELS, 0.0)
    for level, value, part in zip(levels, found, parts, strict=True):
        variance[LEVELS[level - 1]] = float(value)
        shares[LEVELS[level - 1]] = part / total if total else 0.0
    counts = dict(zip(LEVELS, units[1:], strict=True))
    return VarianceComponents(variance, shares, float(np.sqrt(total)), counts)


def _numbered(keys: Sequence[tuple[object, ...]]) -> list[int]:
    numbers: dict[tuple[object, ...], int] = defaultdict(lambda: len(numbers))
    return [numbers[key] for key in keys]


def _squares(values: np.ndarray, code: np.ndarray) -> float:
    """The sum over the units of a level of their size times their squared mean."""
    return float((np.bincount(code, values) ** 2 / np.bincount(code)).sum())


def _weight(group: np.ndarray, level: np.ndarray) -> float:
    """The coefficient of a level's variance in the expectation of the groups' sum of squares."""
    pairs, sizes = np.unique(np.stack([group, level]), axis=1, return_counts=True)
    return float((sizes**2 / np.bincount(group)[pairs[0]]).sum())
