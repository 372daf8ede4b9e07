"""Evolving state: notes that a model rewrites with each session, and compresses when they grow too long."""

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
    """The notes, whatever is asked.

    Args:
        limit_tokens: of the notes; longer ones are compressed by the model, and what is too long even then loses its
            last lines. Below `notes.REPLY_TOKENS`, or no reply could reach it.
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
            kept = 0
            while kept < len(notes) and self.count(text(notes[: kept + 1])) <= self.limit_tokens:
                kept += 1
            notes = notes[:kept] or state.notes
        state.notes = notes

    def recall(self, state: NotesState, question: str, budget_tokens: int) -> Recall:
        return show_notes(state, state.notes, range(len(state.notes)), budget_tokens, self.count)
