"""A buffer of the newest turns, and a summary of the earlier ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from memometer.budget import pack
from memometer.memory import Recall, Turn
from memometer.systems.notes import Note, NotesState, show_notes
from memometer.systems.summary import Summary


@dataclass
class SummariesState(NotesState):
    """A NotesState with the running summary after each session."""

    after: dict[int, list[Note]] = field(default_factory=dict)


class SummaryBuffer(Summary[SummariesState]):
    """Shows the newest turns in up to half the budget, after the summary of the sessions that are not shown completely.

    The summary after every session is kept, because the start of the buffer depends on the budget of the question.
    """

    state_type = SummariesState

    def write(self, state: SummariesState, session: Sequence[Turn]) -> None:
        super().write(state, session)
        state.after[session[0].session] = state.notes

    def recall(self, state: SummariesState, question: str, budget_tokens: int) -> Recall:
        newest = pack(state, reversed(range(len(state.turns))), budget_tokens // 2, self.count)
        shown = set(newest.turn_ids)
        left_out = [turn.session for turn in state.turns if turn.id not in shown]
        summary = state.after[left_out[-1]] if left_out else []
        return show_notes(state, summary, range(len(summary)), budget_tokens, self.count, turns=newest)
