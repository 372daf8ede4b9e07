"""Scores of episodes for a question, from words, vectors, recency, importance, uses and neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from memometer.store import deadline
from memometer.store.episode import Columns, Episode
from memometer.store.quantise import Quantiser

HOUR = 3_600.0
DAY = 24 * HOUR
MAX_NEIGHBOUR_DISTANCE = 2
"""Largest distance of neighbours, in episodes."""

_BLOCK = 1024  # episodes compared at a time


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
        merge_above: cosine above which two episodes are near-duplicates; None merges nothing.
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


def has_decayed(weights: Weights, episode: Episode, at: float) -> bool:
    """Return True if an episode should be forgotten at a time in Unix seconds."""
    if weights.prune_below is None:
        return False
    days = (at - episode.at) / DAY
    return (
        days > weights.prune_after_days
        and episode.uses < weights.prune_uses
        and episode.importance * weights.decay**days < weights.prune_below
    )


def near_duplicates(quantiser: Quantiser, episodes: Sequence[Episode], above: float) -> list[list[Episode]]:
    """Return groups of two or more episodes whose cosine with the first of the group is above a threshold.

    The first of a group has the longest text. Each episode is in at most one group: longer texts choose first; ties are
    broken by the smaller id.
    """
    order = sorted((episode for episode in episodes if episode.codes), key=lambda e: (-len(e.text), e.id))
    codes = quantiser.matrix([episode.codes for episode in order])
    norms = quantiser.norms(codes)
    starts = range(0, len(order), _BLOCK)
    groups: dict[int, list[int]] = {}
    taken = np.zeros(len(order), bool)
    for start in starts:
        levels = quantiser.levels(codes[start : start + _BLOCK])
        deadline.check()
        for other in starts[start // _BLOCK :]:  # the block itself comes first and decides which of it are taken
            products = levels @ quantiser.levels(codes[other : other + _BLOCK]).T
            near = products / np.outer(norms[start : start + _BLOCK], norms[other : other + _BLOCK]) > above
            near = np.triu(near, 1) if other == start else near
            for row in np.flatnonzero(near.any(axis=1)).tolist():
                if not taken[start + row]:
                    chosen = other + np.flatnonzero(near[row] & ~taken[other : other + _BLOCK])
                    groups.setdefault(start + row, []).extend(chosen.tolist())
                    taken[chosen] = True
    return [[order[n], *(order[other] for other in others)] for n, others in sorted(groups.items()) if others]
