"""Retrieval of whole sessions: the context of an answer is complete, but few sessions fit."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from memometer.budget import best_first, pack, show
from memometer.memory import Memory, Recall, State, Turn
from memometer.retrieval.bm25 import bm25_scores, term_counts
from memometer.retrieval.passages import has_passages


@dataclass
class SessionState(State):
    """A State with the term counts and the tokens of each session."""

    terms: dict[int, Counter[str]] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)


class Session(Memory[SessionState]):
    """Ranks sessions by BM25 of their turns, and skips those that do not fit completely.

    If none fits because of a turn of several passages, it shows the best turns of the best session.
    """

    state_type = SessionState
    recall_only_computes = True

    def observe(self, state: SessionState, turns: Sequence[Turn]) -> None:
        first = len(state.turns)
        dated = (state.turns[-1].session, state.turns[-1].day) if first else None
        super().observe(state, turns)
        for turn, tokens in zip(turns, state.line_tokens[first:], strict=True):
            state.terms.setdefault(turn.session, Counter()).update(term_counts(turn.line))
            header = 0 if (turn.session, turn.day) == dated else state.header_tokens[turn.day]
            dated = turn.session, turn.day
            state.tokens[turn.session] = state.tokens.get(turn.session, 0) + header + tokens

    def recall(self, state: SessionState, question: str, budget_tokens: int) -> Recall:
        sessions = list(state.terms)
        chosen: list[int] = []
        left = budget_tokens

        def shown(sessions: list[int]) -> Recall:
            positions = (i for i, turn in enumerate(state.turns) if turn.session in sessions)
            return show(state, positions, self.count, form=self.form)

        for i in best_first(bm25_scores(list(state.terms.values()), question)):
            cost = shown([sessions[i]]).tokens if self.form else state.tokens[sessions[i]]
            if cost <= left:
                chosen.append(sessions[i])
                left -= cost
        while chosen:
            recall = shown(chosen)
            if recall.tokens <= budget_tokens:
                return recall
            chosen.pop()  # a tokenizer may join tokens across lines
        best = next((sessions[i] for i in best_first(bm25_scores(list(state.terms.values()), question))), None)
        positions = [i for i, turn in enumerate(state.turns) if turn.session == best]
        if not any(has_passages(state.lines[i]) for i in positions):
            return Recall()
        matches = bm25_scores([term_counts(state.turns[i].line) for i in positions], question)
        ranking = [positions[n] for n in best_first(matches)]
        return pack(state, ranking, budget_tokens, self.count, question=question, form=self.form)
