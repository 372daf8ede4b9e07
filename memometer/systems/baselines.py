"""Baselines that run in every evaluation: no memory, a constant refusal, and an oracle with the gold evidence.

A memory system scores between `none` and `oracle`. Reports state which fraction of that gap it closes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from memometer.budget import pack
from memometer.memory import Memory, Recall, State


class NoMemory(Memory[State]):
    """The question alone. Its score shows what a reader guesses or knows already."""

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
    """The gold evidence turns, as many as the budget holds: the upper limit that the reader sets for any memory.

    It is the only system that sees evidence labels. The evaluation loop passes them with `reveal`.
    """

    state_type = RevealedState

    def reveal(self, state: State, evidence: Collection[str]) -> RevealedState:
        """The state from which one question is recalled."""
        positions = [position for position, turn in enumerate(state.turns) if turn.id in evidence]
        return RevealedState(state.turns, state.lines, state.line_tokens, state.header_tokens, evidence=positions)

    def recall(self, state: RevealedState, question: str, budget_tokens: int) -> Recall:
        return pack(state, state.evidence, budget_tokens, self.count, form=self.form)
