"""The untrained ranking of the adaptive memory: a fixed sum of its signals, without learned weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from memometer.systems.adaptive import AdaptiveMemory, IndexedState


class Untrained(AdaptiveMemory):
    """Ranks turns by the untrained score and fills the budget by rank, regardless of the tokens of a turn.

    It shows how much the learned weights and the packing by value add.
    """

    takes_ranking = False

    @property
    def fitted_on(self) -> tuple[str, ...]:
        return self._projection().fitted_on if self.encoder else ()

    def scores(self, state: IndexedState, question: str, follow_up_queries: Sequence[str] = ()) -> np.ndarray:
        if not state.turns:
            return np.zeros(0, np.float32)
        queries = (question, *follow_up_queries)
        return np.max([self.features(state, query).first for query in queries], axis=0)

    def values(self, state: IndexedState, scores: np.ndarray, budget_tokens: int) -> np.ndarray:
        return scores
