"""The controls beside every table: what a reader scores with no memory, what saying nothing scores, and what a reader
scores with nothing but the evidence. Every memory lies between the first and the last; what it closes of the gap
between them is its own."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import dspy

from memometer.benchmarks.metrics import ABSTENTION
from memory_system import DEFAULT_BUDGET_TOKENS, Memory, Recall, State, pack


class NoMemory(Memory[State]):
    """The question alone: what a reader guesses or knows already."""

    def recall(self, state: State, question: str, budget_tokens: int) -> Recall:
        return Recall()


class Refusal(NoMemory):
    """Always "No information available", and no model is asked: right on every unanswerable question. A score
    over all questions below this one is worth nothing, and a judge that accepts it on answerable questions is
    useless."""

    def forward(
        self, state: State, question: str, budget_tokens: int = DEFAULT_BUDGET_TOKENS, choices: str = ""
    ) -> dspy.Prediction:
        return dspy.Prediction(answer=ABSTENTION, recall=Recall())


@dataclass
class RevealedState(State):
    """A State beside the positions of one question's evidence turns."""

    evidence: list[int] = field(default_factory=list)


class Oracle(Memory[RevealedState]):
    """The gold evidence turns, as far as the budget holds them: the ceiling that the reader sets for any memory.

    The only system that is shown evidence labels, by `reveal`, which nothing but the evaluation loop calls.
    """

    state_type = RevealedState

    def reveal(self, state: State, evidence: Collection[str]) -> RevealedState:
        """The state to recall one question from."""
        positions = [position for position, turn in enumerate(state.turns) if turn.id in evidence]
        return RevealedState(state.turns, state.lines, state.line_tokens, state.header_tokens, evidence=positions)

    def recall(self, state: RevealedState, question: str, budget_tokens: int) -> Recall:
        return pack(state, state.evidence, budget_tokens, self.count, form=self.form)


CONTROLS: dict[str, type[Memory[Any]]] = {"none": NoMemory, "refusal": Refusal, "oracle": Oracle}
"""What always runs. `recent` and `full_context`, the other two that a memory has to beat, are memory systems as any
other, and among the default ones: the second costs a whole conversation a question."""
