"""Scores of episodes for a question, from words, vectors, recency, importance, uses and neighbours."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from memometer.store.episode import Columns

HOUR = 3_600.0
DAY = 24 * HOUR
MAX_NEIGHBOUR_DISTANCE = 2
"""Largest distance of neighbours, in episodes."""


@dataclass(frozen=True)
class Weights:
    """Parameters of search, merging and forgetting. The search weights multiply values of about 0 to 1.

    Args:
        lexical: weight of BM25, as a share of the best score in the scope.
        dense: weight of the cosine.
        recency: weight of exp(-days / recency_days).
        recency_days: time constant of recency, in days.
        importance: weight of the episode's importance times decay ** days.
        decay: decay of importance per day, from 0 to 1.
        use: weight of log2(1 + uses) / 10, which is 1 at 1,023 uses.
        neighbours: weight of the neighbours' lexical and dense scores. Neighbours two episodes away count half, and
            only those within an hour count.
        merge_above: cosine of the full vectors above which two episodes are near-duplicates; None merges nothing.
        prune_below: an episode is forgotten if its decayed importance is below this; None forgets nothing.
        prune_after_days: an episode is never forgotten before this age, in days.
        prune_uses: an episode with at least this number of uses is never forgotten.
    """

    lexical: float = 0.3
    dense: float = 0.7
    recency: float = 0.0
    recency_days: float = 30.0
    importance: float = 0.0
    decay: float = 1.0
    use: float = 0.0
    neighbours: float = 0.3
    merge_above: float | None = 0.95
    prune_below: float | None = None
    prune_after_days: float = 30.0
    prune_uses: int = 2

    @property
    def uses_time(self) -> bool:
        """True if a new episode may rank high without matching the question."""
        return self.recency > 0 or (self.importance > 0 and self.decay < 1)


DEFAULT = Weights()
"""Words and vectors of the episode and its neighbours; chosen by measurement (benchmarks/stores.py)."""

SEED = Weights(
    lexical=0.0, dense=0.5, recency=0.3, recency_days=10.0, importance=0.2, decay=0.95,
    neighbours=0.0, merge_above=0.85, prune_below=0.1, prune_after_days=30.0, prune_uses=2,
)  # fmt: skip
"""Weights of the first version of this project, for comparison."""

NAMED = {"default": DEFAULT, "seed": SEED}


def recency(episode_at: float, at: float, weights: Weights) -> float:
    """Return exp(-days / recency_days) of an episode's age; both times are in Unix seconds."""
    return math.exp(-max(0.0, at - episode_at) / DAY / weights.recency_days)


def scores(
    columns: Columns, weights: Weights, at: float, *, lexical: np.ndarray, windows: np.ndarray | None
) -> np.ndarray:
    """Return the score of each episode, higher is better.

    Args:
        columns: the candidates.
        weights: weights of the signals.
        at: time of the question, in Unix seconds.
        lexical: BM25 of each candidate, as a share of the best score in the scope.
        windows: rows around each candidate (`Store.neighbours`); None if neighbours do not count.
    """
    days = np.maximum(0.0, at - columns.at) / DAY
    matches = weights.lexical * lexical + weights.dense * columns.dense
    total = matches + weights.recency * np.exp(-days / weights.recency_days)
    total += weights.importance * columns.importance * weights.decay**days
    total += weights.use * np.log2(1 + columns.uses) / 10
    if windows is not None:
        total += weights.neighbours * neighbour_scores(columns, matches, windows)
    return total


def neighbour_scores(columns: Columns, matches: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Return for each candidate the sum of its neighbours' scores, each divided by its distance.

    Args:
        columns: the candidates.
        matches: lexical and dense score of each.
        windows: rows around each candidate, shape (candidates, 2 * distance + 1). Rows that are not candidates do not
            count.
    """
    sums = np.zeros(len(matches))
    if not len(matches):
        return sums
    middle = windows.shape[1] // 2
    for n in range(windows.shape[1]):
        if n != middle:
            places = np.minimum(np.searchsorted(columns.rows, windows[:, n]), len(matches) - 1)
            counts = (columns.rows[places] == windows[:, n]) & (np.abs(columns.at[places] - columns.at) <= HOUR)
            sums += np.where(counts, matches[places] / abs(n - middle), 0.0)
    return sums
