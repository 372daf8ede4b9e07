"""Scores of episodes for a question, from words, vectors, recency, importance, uses and neighbours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from memometer.store import deadline
from memometer.store.episode import Episode, SearchResult
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


def ranked(
    episodes: Mapping[int, Episode],
    weights: Weights,
    at: float,
    *,
    lexical: Mapping[int, float],
    dense: Mapping[int, float],
    windows: Mapping[int, Sequence[int]],
) -> list[SearchResult]:
    """Return the episodes with their scores, the best first. Ties are broken by the smaller id.

    Args:
        episodes: candidates by row.
        weights: weights of the signals.
        at: time of the question, in Unix seconds.
        lexical: BM25 by row, as a share of the best score; 0 for other rows.
        dense: cosine by row.
        windows: rows around each row; empty if neighbours do not count.
    """
    matches = {row: weights.lexical * lexical.get(row, 0.0) + weights.dense * dense[row] for row in episodes}
    nearby = neighbour_scores(matches, {row: episode.at for row, episode in episodes.items()}, windows)
    results = []
    for row, episode in episodes.items():
        days = max(0.0, at - episode.at) / DAY
        recent = recency(episode.at, at, weights)
        score = (
            weights.lexical * lexical.get(row, 0.0)
            + weights.dense * dense[row]
            + weights.neighbours * nearby.get(row, 0.0)
            + weights.recency * recent
            + weights.importance * episode.importance * weights.decay**days
            + weights.use * math.log2(1 + episode.uses) / 10
        )
        results.append(SearchResult(episode, score, lexical.get(row, 0.0), dense[row], recent))
    return sorted(results, key=lambda result: (-result.score, result.episode.id))


def neighbour_scores(
    matches: Mapping[int, float], times: Mapping[int, float], windows: Mapping[int, Sequence[int]]
) -> dict[int, float]:
    """Return for each row the sum of its neighbours' scores, each divided by its distance.

    Args:
        matches: lexical and dense score by row.
        times: Unix seconds by row.
        windows: rows around each row, in insertion order.
    """
    sums = {}
    for row, window in windows.items():
        place = window.index(row)
        sums[row] = sum(
            matches[other] / abs(n - place)
            for n, other in enumerate(window)
            if other != row and other in matches and abs(times[other] - times[row]) <= HOUR
        )
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
