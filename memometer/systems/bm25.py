"""BM25 retrieval of turns."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

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

    def observe(self, state: CountedState, turns: Sequence[Turn]) -> None:
        state.terms.extend(term_counts(turn.line) for turn in turns)
        super().observe(state, turns)

    def recall(self, state: CountedState, question: str, budget_tokens: int) -> Recall:
        return pack(state, best_first(bm25_scores(state.terms, question)), budget_tokens, self.count, form=self.form)
