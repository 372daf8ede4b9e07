"""Baselines that run in every evaluation: no memory, a constant refusal, and an oracle with the gold evidence.

A memory system scores between `none` and `oracle`. Reports state which fraction of that gap it closes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from memometer.budget import pack
from memometer.memory import Memory, Recall, State


class NoMemory(Memory[State]):
    """Shows the question without any memory. Its score shows how much a reader guesses or already knows."""

    recall_only_computes = True

    def recall(self, state: State, question: str, budget_tokens: int) -> Recall:
        return Recall()


class Refusal(NoMemory):
    """Always answers "No information available" without a model call.

    `memometer.reader.reader.RefusingReader` gives the answer. It is right on every unanswerable question. A system
    with a lower score over all questions is useless, and so is a judge that accepts this answer to an answerable
    question.
    """


@dataclass
class RevealedState(State):
    """A State with the positions of one question's evidence turns."""

    evidence: list[int] = field(default_factory=list)


class Oracle(Memory[RevealedState]):
    """Shows the gold evidence turns that fit the budget. Its score is an upper limit for memories.

    It is the only system that sees evidence labels. The evaluation loop passes them with `reveal`.
    """

    state_type = RevealedState
    recall_only_computes = True

    def reveal(self, state: State, evidence: Collection[str]) -> RevealedState:
        """Return the state for one question, with its evidence."""
        positions = [position for position, turn in enumerate(state.turns) if turn.id in evidence]
        return RevealedState(state.turns, state.lines, state.line_tokens, state.header_tokens, evidence=positions)

    def recall(self, state: RevealedState, question: str, budget_tokens: int) -> Recall:
        return pack(state, state.evidence, budget_tokens, self.count, question=question, form=self.form)
