"""The index of turns as NumPy arrays, with everything that does not depend on the question.

An index keeps its arrays until a turn is added, so that the second question costs less than the first.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from memometer.retrieval.bm25 import saturation
from memometer.retrieval.turn_index import SHAPE, TurnIndex

BURST = 5
"""Most turns of a burst: the turns of one speaker in a row, which people write as one message."""


class TurnArrays:
    """The arrays of one index, one element or row per turn unless the name says otherwise."""

    def __init__(self, index: TurnIndex) -> None:
        self._index = index
        self.n = len(index)
        self.lengths = np.array(index.lengths, np.float32)
        self.gram_lengths = np.array(index.gram_lengths, np.float32)
        self.session = np.array(index.session, np.int32)
        self.starts = np.array(index.session_starts, np.int64)
        self.days = np.array(index.days, np.int32)
        self.speaker = np.array(index.speaker, np.int32)
        self.shape = np.array(index.shape, np.float32).reshape(self.n, len(SHAPE))
        self.sequence = np.array(index.sequence, np.int32)
        self.ends = np.array(index.ends, np.int64)
        self.when_turn = np.array(index.when_turn, np.int64)
        self.when_start, self.when_end = (np.array(each, np.int64) for each in (index.when_start, index.when_end))
        self.same = {d: self.session[d:] == self.session[:-d] for d in (1, 2, 3)}
        changes = np.ones(self.n, bool)
        changes[1:] = (self.speaker[1:] != self.speaker[:-1]) | ~self.same[1]
        runs = np.flatnonzero(changes)
        place = np.arange(self.n) - np.repeat(runs, np.diff(np.append(runs, self.n)))
        self.burst_starts = np.flatnonzero(place % BURST == 0)
        self.burst = np.cumsum(place % BURST == 0) - 1
        self.session_lengths = np.add.reduceat(self.lengths, self.starts)
        self.burst_lengths = np.add.reduceat(self.lengths, self.burst_starts)
        self.window_lengths, self.wide_lengths = self.window(self.lengths), self.window(self.lengths, 3)
        self.passages = Passages(index, self)

    def shift(self, values: np.ndarray, distance: int) -> np.ndarray:
        """Move each value to the turn `distance` later (earlier if negative); zero across sessions."""
        moved = np.zeros_like(values)
        d = abs(distance)
        if self.n > d:
            if distance > 0:
                moved[d:] = values[:-d] * self.same[d]
            else:
                moved[:-d] = values[d:] * self.same[d]
        return moved

    def window(self, values: np.ndarray, reach: int = 1) -> np.ndarray:
        """Sum each turn's value and those of its neighbours up to `reach` turns away."""
        return sum((self.shift(values, d) for r in range(1, reach + 1) for d in (r, -r)), start=values)

    def spread(self, values: np.ndarray, near: float, far: float) -> np.ndarray:
        """Add a share of the neighbours' values, because an answer is often next to the question's words."""
        one = self.shift(values, 1) + self.shift(values, -1)
        return values + near * one + far * (self.shift(values, 2) + self.shift(values, -2))

    def best_of_session(self, values: np.ndarray) -> np.ndarray:
        return np.maximum.reduceat(values, self.starts)

    def bursts(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the best value of each turn's burst, of the one before and of the one after; zero across sessions."""
        best = np.maximum.reduceat(values, self.burst_starts)
        session = self.session[self.burst_starts]
        joined = session[1:] == session[:-1]
        before, after = np.zeros_like(best), np.zeros_like(best)
        before[1:], after[:-1] = best[:-1] * joined, best[1:] * joined
        return best[self.burst], before[self.burst], after[self.burst]

    def information(self, positions: np.ndarray) -> np.ndarray:
        """Return the summed idf of the terms of some turns, divided by ten, shape (positions,)."""
        if len(positions) == self.n:
            return self._information
        return self._information_of(positions)

    @cached_property
    def _information(self) -> np.ndarray:
        return self._information_of(np.arange(self.n))

    def _information_of(self, positions: np.ndarray) -> np.ndarray:
        stops, starts = self.ends[positions], np.append(0, self.ends[:-1])[positions]
        lengths = stops - starts
        at = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
        numbers, which = np.unique(self.sequence[at], return_inverse=True)
        terms = (self._index.vocabulary[number] for number in numbers.tolist())
        held = np.array([len(self._index.postings[term].positions) for term in terms])
        weights = (np.log(1 + (self.n - held + 0.5) / (held + 0.5)) / 10)[which] if len(held) else held
        sums = np.append(0.0, np.cumsum(weights))
        last = np.cumsum(lengths)
        return (sums[last] - sums[last - lengths]).astype(np.float32)


def turn_arrays(index: TurnIndex) -> TurnArrays:
    """Return the arrays of an index, which are computed again after a turn was added."""
    found: TurnArrays | None = index.computed.get("arrays")
    if found is None or found.n != len(index):
        found = index.computed["arrays"] = TurnArrays(index)
    return found


class Passages:
    """The passages of long turns. A long turn is as good as its best passage."""

    def __init__(self, index: TurnIndex, turns: TurnArrays) -> None:
        self.turn = np.array(index.passage_turn, np.int64)
        if not len(self.turn):
            return
        ends = np.array(index.passage_end, np.int64)
        starts = np.append(0, ends[:-1])
        first = np.flatnonzero(np.append(True, self.turn[1:] != self.turn[:-1]))
        starts[first] = np.append(0, turns.ends)[self.turn[first]]
        length = ends - starts
        at = np.repeat(starts - (np.cumsum(length) - length), length) + np.arange(length.sum())
        self._lengths = length.astype(np.float32)
        self._mean = float(self._lengths.mean())
        self._words, self._owner = turns.sequence[at], np.repeat(np.arange(len(self.turn)), length)

    def bm25(self, terms: list[tuple[int, float]], mean: float) -> np.ndarray:
        """Return the BM25 score of every passage.

        Args:
            terms: position in the vocabulary and weight of each term of the question.
            mean: terms of the mean turn.
        """
        scores = np.zeros(len(self.turn), np.float32)
        for number, weight in terms:
            held = self._owner[self._words == number]
            if len(held):
                tf = np.bincount(held, minlength=len(self.turn)).astype(np.float32)
                scores += weight * saturation(tf, self._lengths, min(mean, self._mean))
        return scores
