"""Knowledge graph: triples that a model extracts, recalled by their distance from the entities in the question."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import dspy

from memometer.memory import Recall, State, Turn
from memometer.retrieval.bm25 import bm25_scores, term_counts
from memometer.systems.notes import Note, WritingMemory, ask, day, show_notes
from memometer.token_counters import TokenCounter


# There is no worked example, because small models copy it as a fact.
class ExtractTriples(dspy.Signature):
    """List the facts that the numbered lines tell. One line for each, in the form: number | subject | relation | \
object"""

    session: str = dspy.InputField()
    triples: str = dspy.OutputField()


@dataclass(frozen=True, slots=True)
class Triple:
    """An edge of the graph.

    Attributes:
        subject: start of the edge.
        relation: label of the edge.
        object: end of the edge.
        date: date of its session.
        turn_id: its source turn; None if the model named none.
        note: the printed form.
    """

    subject: str
    relation: str
    object: str
    date: str
    turn_id: str | None
    note: Note


@dataclass
class GraphState(State):
    """A State with the triples extracted from its turns, in time order."""

    triples: list[Triple] = field(default_factory=list)


class KnowledgeGraph(WritingMemory[GraphState]):
    """Shows triples with an entity that the question names, then those one step away, then others; each group is ranked
    by BM25."""

    state_type = GraphState

    def __init__(self, *, count: TokenCounter | None = None) -> None:
        super().__init__(count=count)
        self.extract = dspy.Predict(ExtractTriples)

    def write(self, state: GraphState, session: Sequence[Turn]) -> None:
        dialogue = session[0].header + "".join(f"{i} {turn.line}" for i, turn in enumerate(session, start=1))
        for number, subject, relation, object in parse(ask(self.extract, session=dialogue)):
            turn_id = session[number - 1].id if 1 <= number <= len(session) else None
            date = day(session[0])
            note = self.note(f"{subject} {relation} {object} ({date})", (turn_id,) if turn_id else ())
            state.triples.append(Triple(subject, relation, object, date, turn_id, note))

    def recall(self, state: GraphState, question: str, budget_tokens: int) -> Recall:
        query = set(term_counts(question))
        ends = [{frozenset(term_counts(end)) for end in (t.subject, t.object)} - {frozenset()} for t in state.triples]
        named = {end for both in ends for end in both if end <= query}
        adjacent = {end for both in ends if both & named for end in both}
        steps = [0 if both & named else 1 if both & adjacent else 2 for both in ends]
        matches = bm25_scores([term_counts(triple.note.line) for triple in state.triples], question)
        ranking = sorted(range(len(steps)), key=lambda i: (steps[i], -matches[i], -i))
        return show_notes(state, [triple.note for triple in state.triples], ranking, budget_tokens, self.count)


def parse(lines: Sequence[str]) -> list[tuple[int, str, str, str]]:
    """Return (line number, subject, relation, object) of each line with three parts; a missing number is 0."""
    found = []
    for line in lines:
        parts = [part.strip(" \"'()[]") for part in line.strip("| ()").split("|" if "|" in line else ",")]
        parts = [part for part in parts if part]
        number = 0
        if parts and (match := re.fullmatch(r"(?:line |turn )?#?(\d{1,4})", parts[0].lower())):
            number = int(match[1])
            parts = parts[1:]
        heading = [part.lower() for part in parts[-3:]] == ["subject", "relation", "object"]
        if len(parts) >= 3 and not heading and all(re.search(r"\w", part) for part in parts):
            found.append((number, parts[0], parts[1], ", ".join(parts[2:])))
    return list(dict.fromkeys(found))
