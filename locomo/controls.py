"""The two controls beside every table: what a reader scores with no memory, and with nothing but the evidence."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from memory_system import Memory, Recall, State, pack


class NoMemory(Memory[State]):
    """The question alone: what a reader guesses or knows already."""

    def recall(self, state: State, question: str, budget_tokens: int) -> Recall:
        return Recall()


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
        return pack(state, state.evidence, budget_tokens, self.count)


CONTROLS: dict[str, type[Memory[Any]]] = {"none": NoMemory, "oracle": Oracle}
