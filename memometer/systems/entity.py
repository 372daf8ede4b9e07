"""Entity memory: what a model wrote about each person, place and thing, found by the names in the question."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import dspy

from memometer.memory import Recall, State, Turn
from memometer.retrieval.bm25 import bm25_scores, term_counts
from memometer.systems.notes import Note, WritingMemory, ask, day, show_notes, text, transcript
from memometer.token_counters import TokenCounter

KNOWN_NOTES = 20  # of what is known already, so many notes are shown to the model, the newest


class DescribeEntities(dspy.Signature):
    """List what the session tells about each person, pet, place, event and thing in it that is not known yet. One \
line for each fact, in the form Name: fact"""

    known: str = dspy.InputField()
    session: str = dspy.InputField()
    facts: str = dspy.OutputField()


@dataclass
class EntityState(State):
    """A State with facts by entity, both in the order in which they were first written."""

    facts: dict[str, list[Note]] = field(default_factory=dict)


class Entity(WritingMemory[EntityState]):
    """Facts about the entities that the question names, then the others while they fit; of each, the ones that share
    more words with the question first. A fact is dated by its session; a later one stands beside an earlier one."""

    state_type = EntityState

    def __init__(self, *, count: TokenCounter | None = None) -> None:
        super().__init__(count=count)
        self.describe = dspy.Predict(DescribeEntities)

    def write(self, state: EntityState, session: Sequence[Turn]) -> None:
        said = transcript(session)
        spoken = said.lower()
        known = [note for name, notes in state.facts.items() if name.lower() in spoken for note in notes]
        lines = ask(self.describe, known=text(known[-KNOWN_NOTES:]), session=said)
        names = {name.lower(): name for name in [*state.facts, *sorted({turn.speaker for turn in session})]}
        for name, fact in parse(lines, list(names.values())):
            name = names.setdefault(name.lower(), name)
            facts = state.facts.setdefault(name, [])
            # Small models repeat what they are shown as known, with its date or without.
            if not any(note.line.startswith(" ".join(f"{name}: {fact}".split())) for note in facts):
                facts.append(self.note(f"{name}: {fact} ({day(session[0])})"))

    def recall(self, state: EntityState, question: str, budget_tokens: int) -> Recall:
        asked = term_counts(question)
        notes = [note for facts in state.facts.values() for note in facts]
        named = [any(term in asked for term in term_counts(name)) for name, facts in state.facts.items() for _ in facts]
        matches = bm25_scores([term_counts(note.line) for note in notes], question)
        ranking = sorted(range(len(notes)), key=lambda i: (not named[i], -matches[i], -i))
        return show_notes(state, notes, ranking, budget_tokens, self.count)


def parse(lines: Sequence[str], names: Sequence[str]) -> list[tuple[str, str]]:
    """(name, fact) of each line that holds both. A name alone is the heading of the lines below it; a line without one
    belongs to that heading, else to the known name that it begins with, else to nobody."""
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
