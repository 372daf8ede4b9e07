"""A running summary that a model rewrites with each session, like LangChain's summary memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import dspy

from memometer.memory import Recall, Turn
from memometer.systems.notes import NotesState, WritingMemory, ask, sentences, show_notes, text, transcript
from memometer.token_counters import TokenCounter


class Summarise(dspy.Signature):
    """Rewrite the summary of a conversation so that it also covers the new session. Keep names, numbers, and when \
things happened: write a date in place of words like yesterday. One fact a line, at most 20 lines, the most important \
first."""

    known: str = dspy.InputField()
    session: str = dspy.InputField()
    summary: str = dspy.OutputField()


S = TypeVar("S", bound=NotesState)


class Summary(WritingMemory[S]):
    """Shows the summary, independent of the question. An empty reply leaves it unchanged."""

    state_type = NotesState

    def __init__(self, *, count: TokenCounter | None = None) -> None:
        super().__init__(count=count)
        self.summarise = dspy.Predict(Summarise)

    def write(self, state: S, session: Sequence[Turn]) -> None:
        if lines := ask(self.summarise, known=text(state.notes), session=transcript(session)):
            state.notes = [self.note(line) for line in sentences(lines)]

    def recall(self, state: S, question: str, budget_tokens: int) -> Recall:
        return show_notes(state, state.notes, range(len(state.notes)), budget_tokens, self.count)
