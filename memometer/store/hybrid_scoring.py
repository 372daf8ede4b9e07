"""How well an episode fits a question: words, meaning, recency, importance and use, each with its weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from memometer.store.episode import Episode, Found
from memometer.store.quantise import Quantiser

HOUR = 3_600.0
DAY = 24 * HOUR
REACH = 2
"""How far episodes that stand beside another are from it at most."""

_BLOCK = 1024  # episodes compared at a time


@dataclass(frozen=True)
class Weights:
    """Every parameter of recall, merging and forgetting. Those of recall weigh numbers of about 0 to 1:

    Args:
        lexical: BM25, as a share of the best in the scope.
        dense: the cosine.
        recency: exp(-days / recency_days).
        importance: the episode's, times decay ** days.
        use: log2(1 + uses) / 10: 1,023 uses count 1.
        beside: how well the episodes just before and just after fit by words and meaning; those two away count half.
            Only what happened within an hour counts.
        merge_above: cosine from which episodes are near-duplicates; None merges nothing.
        prune_below: an importance that has decayed below this is forgotten, once `prune_after_days` have passed and
            where there were fewer than `prune_uses` uses; None forgets nothing.
    """

    lexical: float = 0.3
    dense: float = 0.7
    recency: float = 0.0
    recency_days: float = 30.0
    importance: float = 0.0
    decay: float = 1.0
    use: float = 0.0
    beside: float = 0.3
    merge_above: float | None = 0.95
    prune_below: float | None = None
    prune_after_days: float = 30.0
    prune_uses: int = 2

    @property
    def by_time(self) -> bool:
        """Whether an episode that fits neither by words nor by meaning may be wanted for being new."""
        return self.recency > 0 or (self.importance > 0 and self.decay < 1)


DEFAULT = Weights()
"""What measurement supports: words and meaning, of the episode and of those beside it."""

SEED = Weights(
    lexical=0.0, dense=0.5, recency=0.3, recency_days=10.0, importance=0.2, decay=0.95,
    beside=0.0, merge_above=0.85, prune_below=0.1, prune_after_days=30.0, prune_uses=2,
)  # fmt: skip
"""The weights of the idea that this project grew from, for comparison."""

NAMED = {"default": DEFAULT, "seed": SEED}


def score(weights: Weights, episode: Episode, at: float, *, lexical: float, dense: float, beside: float) -> Found:
    """What an episode is worth at some time, given how it fits by words (0 to 1) and by meaning (-1 to 1), and what
    stands beside it by both."""
    days = max(0.0, at - episode.at) / DAY
    recency = math.exp(-days / weights.recency_days)
    total = (
        weights.lexical * lexical
        + weights.dense * dense
        + weights.beside * beside
        + weights.recency * recency
        + weights.importance * episode.importance * weights.decay**days
        + weights.use * math.log2(1 + episode.uses) / 10
    )
    return Found(episode, total, lexical, dense, recency)


def fit_beside(
    fits: Mapping[int, float], times: Mapping[int, float], windows: Mapping[int, Sequence[int]]
) -> dict[int, float]:
    """For each row the sum of how its neighbours fit, those two away by half. `windows` has the rows around each."""
    sums = {}
    for row, window in windows.items():
        place = window.index(row)
        sums[row] = sum(
            fits[other] / abs(n - place)
            for n, other in enumerate(window)
            if other != row and other in fits and abs(times[other] - times[row]) <= HOUR
        )
    return sums


def faded(weights: Weights, episode: Episode, at: float) -> bool:
    """Whether an episode is to be forgotten."""
    if weights.prune_below is None:
        return False
    days = (at - episode.at) / DAY
    return (
        days > weights.prune_after_days
        and episode.uses < weights.prune_uses
        and episode.importance * weights.decay**days < weights.prune_below
    )


def duplicates(quantiser: Quantiser, episodes: Sequence[Episode], above: float) -> list[list[Episode]]:
    """Groups of two or more whose cosine with the first of the group, the longest text, is above a threshold.

    Each episode is in one group at most; longer texts choose first, of equal ones the smaller id.
    """
    order = sorted((episode for episode in episodes if episode.codes), key=lambda e: (-len(e.text), e.id))
    codes = quantiser.matrix([episode.codes for episode in order])
    norms = quantiser.norms(codes)
    starts = range(0, len(order), _BLOCK)
    groups: dict[int, list[int]] = {}
    taken = np.zeros(len(order), bool)
    for start in starts:
        levels = quantiser.levels(codes[start : start + _BLOCK])
        for other in starts[start // _BLOCK :]:  # first its own, which says who of it is taken
            products = levels @ quantiser.levels(codes[other : other + _BLOCK]).T
            near = products / np.outer(norms[start : start + _BLOCK], norms[other : other + _BLOCK]) > above
            near = np.triu(near, 1) if other == start else near
            for row in np.flatnonzero(near.any(axis=1)).tolist():
                if not taken[start + row]:
                    chosen = other + np.flatnonzero(near[row] & ~taken[other : other + _BLOCK])
                    groups.setdefault(start + row, []).extend(chosen.tolist())
                    taken[chosen] = True
    return [[order[n], *(order[other] for other in others)] for n, others in sorted(groups.items()) if others]
