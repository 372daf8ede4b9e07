"""Reciprocal rank fusion of BM25 and vector retrieval (Cormack, Clarke and Büttcher, 2009)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from memometer.budget import best_first, pack
from memometer.memory import Recall, Turn
from memometer.retrieval.bm25 import bm25_scores, term_counts
from memometer.systems.vector import Vector, VectorState

K = 60
"""The constant of the original paper: a turn of rank r gets 1 / (K + r) from each ranking."""


@dataclass
class FusedState(VectorState):
    """A VectorState with the term counts of each turn."""

    terms: list[Counter[str]] = field(default_factory=list)


class RRF(Vector):
    """Ranks turns by the sum of their reciprocal ranks in BM25 and in vector retrieval."""

    state_type = FusedState

    def observe(self, state: FusedState, turns: Sequence[Turn]) -> None:  # type: ignore[override]
        state.terms.extend(term_counts(turn.line) for turn in turns)
        super().observe(state, turns)

    def recall(self, state: FusedState, question: str, budget_tokens: int) -> Recall:  # type: ignore[override]
        if not state.turns:
            return Recall()
        scores = np.zeros(len(state.turns))
        for ranking in (bm25_scores(state.terms, question), self.cosines(state, question)):
            for rank, position in enumerate(best_first(ranking), start=1):
                scores[position] += 1 / (K + rank)
        return pack(state, best_first(scores), budget_tokens, self.count, question=question, form=self.form)
