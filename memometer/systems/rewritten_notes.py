"""Notes that a model rewrites with each session, and compresses when they are too long."""

from __future__ import annotations

from collections.abc import Sequence

import dspy

from memometer.memory import Recall, Turn
from memometer.systems.notes import NotesState, WritingMemory, ask, sentences, show_notes, text, transcript
from memometer.token_counters import TokenCounter


class Rewrite(dspy.Signature):
    """You keep notes about two people. Rewrite the notes with what the new session adds or changes: what is no longer \
true is corrected, what still holds is kept. One fact a line, with the name and the date."""

    notes: str = dspy.InputField()
    session: str = dspy.InputField()
    rewritten: str = dspy.OutputField()


class Compress(dspy.Signature):
    """Shorten the notes to half their length: merge lines about the same thing, and drop small talk. Keep names, \
numbers and dates. One fact a line, the most important first."""

    notes: str = dspy.InputField()
    shortened: str = dspy.OutputField()


class RewrittenNotes(WritingMemory[NotesState]):
    """Shows the notes, independent of the question.

    Args:
        count: counts tokens, as in Memory.
        limit_tokens: upper bound on the notes. The model compresses longer ones; if they are still too long, the last
            lines are dropped. It must be below `notes.REPLY_TOKENS`, or no reply could reach it.
    """

    state_type = NotesState

    def __init__(self, *, count: TokenCounter | None = None, limit_tokens: int = 300) -> None:
        super().__init__(count=count)
        self.limit_tokens = limit_tokens
        self.rewrite = dspy.Predict(Rewrite)
        self.compress = dspy.Predict(Compress)

    def write(self, state: NotesState, session: Sequence[Turn]) -> None:
        lines = ask(self.rewrite, notes=text(state.notes), session=transcript(session))
        if not lines:
            return
        notes = [self.note(line) for line in sentences(lines)]
        if self.count(text(notes)) > self.limit_tokens:
            notes = [self.note(line) for line in sentences(ask(self.compress, notes=text(notes)))] or notes
            fitting = 0
            while fitting < len(notes) and self.count(text(notes[: fitting + 1])) <= self.limit_tokens:
                fitting += 1
            notes = notes[:fitting] or state.notes
        state.notes = notes

    def recall(self, state: NotesState, question: str, budget_tokens: int) -> Recall:
        return show_notes(state, state.notes, range(len(state.notes)), budget_tokens, self.count)
