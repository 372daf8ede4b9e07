"""Entity memory: facts that a model extracts about people, places and things, and recalls by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import dspy

from memometer.memory import Recall, State, Turn
from memometer.retrieval.bm25 import bm25_scores, term_counts
from memometer.systems.notes import Note, WritingMemory, ask, day, show_notes, text, transcript
from memometer.token_counters import TokenCounter

KNOWN_NOTES = 20  # the newest known facts that the model sees


class DescribeEntities(dspy.Signature):
    """List what the session tells about each person, pet, place, event and thing in it that is not known yet. One \
line for each fact, in the form Name: fact"""

    known: str = dspy.InputField()
    session: str = dspy.InputField()
    facts: str = dspy.OutputField()


@dataclass
class EntityState(State):
    """A State with facts by entity, both in order of first occurrence."""

    facts: dict[str, list[Note]] = field(default_factory=dict)


class Entity(WritingMemory[EntityState]):
    """Shows facts about the entities that the question names first, then other facts; each group is ranked by BM25.

    A fact has the date of its session. A later fact does not replace an earlier one.
    """

    state_type = EntityState

    def __init__(self, *, count: TokenCounter | None = None) -> None:
        super().__init__(count=count)
        self.describe = dspy.Predict(DescribeEntities)

    def write(self, state: EntityState, session: Sequence[Turn]) -> None:
        dialogue = transcript(session)
        lowered = dialogue.lower()
        known = [note for name, notes in state.facts.items() if name.lower() in lowered for note in notes]
        lines = ask(self.describe, known=text(known[-KNOWN_NOTES:]), session=dialogue)
        names = {name.lower(): name for name in [*state.facts, *sorted({turn.speaker for turn in session})]}
        for name, fact in parse(lines, list(names.values())):
            name = names.setdefault(name.lower(), name)
            facts = state.facts.setdefault(name, [])
            # Small models repeat known facts, with or without the date.
            if not any(note.line.startswith(" ".join(f"{name}: {fact}".split())) for note in facts):
                facts.append(self.note(f"{name}: {fact} ({day(session[0])})"))

    def recall(self, state: EntityState, question: str, budget_tokens: int) -> Recall:
        query = term_counts(question)
        notes = [note for facts in state.facts.values() for note in facts]
        named = [any(term in query for term in term_counts(name)) for name, facts in state.facts.items() for _ in facts]
        matches = bm25_scores([term_counts(note.line) for note in notes], question)
        ranking = sorted(range(len(notes)), key=lambda i: (not named[i], -matches[i], -i))
        return show_notes(state, notes, ranking, budget_tokens, self.count)


def parse(lines: Sequence[str], names: Sequence[str]) -> list[tuple[str, str]]:
    """Return (name, fact) of each line that has both.

    A line with a name alone is a heading. A line without a name belongs to the last heading, or to the known name that
    it starts with; otherwise it is dropped.

    Args:
        lines: lines of a reply.
        names: the known names.
    """
    found = []
    heading = ""
    for line in lines:
        name, colon, fact = (part.strip(" \"'[]") for part in line.partition(":"))
        if colon and re.search(r"[^\W\d]", name) and len(name.split()) <= 5:
            if fact:
                found.append((name, fact))
            else:
                heading = name
            continue
        owner = heading or next((known for known in names if line.lower().startswith(known.lower())), "")
        if owner:
            found.append((owner, line))
    return found
