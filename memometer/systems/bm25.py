"""BM25 retrieval of turns."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from memometer.budget import best_first, pack
from memometer.memory import Memory, Recall, State, Turn
from memometer.retrieval.bm25 import bm25_scores, term_counts


@dataclass
class CountedState(State):
    """A State with the term counts of each turn."""

    terms: list[Counter[str]] = field(default_factory=list)


class BM25(Memory[CountedState]):
    """Ranks turns by BM25 of their lines, speaker included, without their context."""

    state_type = CountedState
    recall_only_computes = True

    def observe(self, state: CountedState, turns: Sequence[Turn]) -> None:
        state.terms.extend(term_counts(turn.line) for turn in turns)
        super().observe(state, turns)

    def recall(self, state: CountedState, question: str, budget_tokens: int) -> Recall:
        return pack(
            state,
            best_first(bm25_scores(state.terms, question)),
            budget_tokens,
            self.count,
            question=question,
            form=self.form,
        )


class BM25Neighbours(BM25):
    """Ranks turns by BM25, to which each turn adds a share of its neighbours' scores in the same session.

    An answer is often next to the words of the question.
    """

    near, far = 0.45, 0.2
    """Shares of the turns next to a turn, and of those two turns away."""

    def recall(self, state: CountedState, question: str, budget_tokens: int) -> Recall:
        own = bm25_scores(state.terms, question)
        session = np.array([turn.session for turn in state.turns])
        scores = own.copy()
        for distance, share in ((1, self.near), (2, self.far)):
            same = session[distance:] == session[:-distance]
            scores[distance:] += share * own[:-distance] * same
            scores[:-distance] += share * own[distance:] * same
        return pack(state, best_first(scores), budget_tokens, self.count, question=question, form=self.form)
