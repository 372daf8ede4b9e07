"""The adaptive memory with facts that a model extracts from each session, as additional keys to their source turns.

The memory still stores and shows turns. A fact restates a turn in other words, or with its date, so that more
questions match it. At equal total tokens the facts have not been worth their model calls (docs/experiments.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from typing import Any

import dspy
import numpy as np

from memometer.memory import Turn
from memometer.retrieval import dates
from memometer.retrieval.bm25 import bm25_scores, term_counts
from memometer.systems.adaptive import AdaptiveMemory, IndexedState
from memometer.systems.notes import WritingMemory, ask

NOW = re.compile(r"\b(?:currently|now|nowadays|these days|at the moment|still|latest|most recent)\b", re.IGNORECASE)
"""Words of questions about the present. The pattern is narrow; a question that it misses can still use every fact."""

SIMILAR = 0.5
"""Jaccard similarity of stems from which two attributes count as the same."""


# There is no worked example, because small models copy it as a fact.
class ExtractFacts(dspy.Signature):
    """List the facts that the numbered lines tell. One line for each, in the form: number | person | attribute | \
value"""

    session: str = dspy.InputField()
    rows: str = dspy.OutputField()


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact about a subject, with two times: when it was said, and when it is true.

    Attributes:
        subject: whom or what it is about.
        attribute: the property; may be empty.
        value: the value of the property.
        positions: its source turns, as positions in `state.turns`.
        said_at: when it was said.
        valid_from: the first day on which it is true.
        valid_to: the last day; None if no end is known.
        superseded_by: the position in `state.facts` of the fact that replaced it. Both are kept.
    """

    subject: str
    attribute: str
    value: str
    positions: tuple[int, ...]
    said_at: datetime
    valid_from: date
    valid_to: date | None = None
    superseded_by: int | None = None

    @property
    def text(self) -> str:
        """The fact as one line."""
        return f"{self.subject} {self.attribute} {self.value}"


@dataclass
class FactsState(IndexedState):
    """An IndexedState with the facts extracted from its turns, in the order in which they were said."""

    facts: list[Fact] = field(default_factory=list)


class FactAugmented(WritingMemory[IndexedState], AdaptiveMemory):
    """The adaptive memory, with a bonus for the source turns of facts that match the question.

    Args:
        fact_weight: the bonus for a fact that matches one standard deviation better than the mean fact, in standard
            deviations of the turns' scores; 0 does not change the ranking.
        adaptive: the parameters of AdaptiveMemory.
    """

    state_type = FactsState
    shows_turns = True

    def __init__(self, *, fact_weight: float = 0.1, **adaptive: Any) -> None:
        super().__init__(**adaptive)
        self.fact_weight = fact_weight
        self.extract = dspy.Predict(ExtractFacts)

    def list_facts(self, session: Sequence[Turn]) -> list[str]:
        """Let the model list the facts of a session, in one call. Returns its lines."""
        dialogue = session[0].header + "".join(f"{i} {turn.line}" for i, turn in enumerate(session, start=1))
        return ask(self.extract, session=dialogue)

    def write(self, state: FactsState, session: Sequence[Turn]) -> None:  # type: ignore[override]
        first = len(state.turns)
        said_at = session[0].said_at
        for numbers, subject, attribute, value in parse(self.list_facts(session), turns=len(session)):
            positions = tuple(first + number - 1 for number in numbers)
            valid_from, valid_to = world_time(value, said_at.date())
            add(state.facts, Fact(subject, attribute, value, positions, said_at, valid_from, valid_to))

    def scores(self, state: FactsState, question: str, follow_up_queries: Sequence[str] = ()) -> np.ndarray:  # type: ignore[override]
        own = super().scores(state, question, follow_up_queries)
        if not state.facts:
            return own
        bonus = np.max([fact_scores(state, query) for query in (question, *follow_up_queries)], axis=0)
        # If all turns have the same score, the facts alone decide.
        return own + self.fact_weight * (float(own.std()) or 1.0) * bonus


def fact_scores(state: FactsState, question: str) -> np.ndarray:
    """Score the best fact of each turn for a question.

    Superseded facts count unless the question is about the present.

    Returns:
        Shape (turns,): BM25 in standard deviations above the mean fact; 0 for a turn without facts.
    """
    now = NOW.search(question)
    facts = [fact for fact in state.facts if not now or fact.superseded_by is None]
    scores = bm25_scores([term_counts(fact.text) for fact in facts], question)
    best = np.zeros(len(state.turns))
    for fact, above in zip(facts, (scores - scores.mean()) / (scores.std() or 1.0), strict=True):
        for position in fact.positions:
            best[position] = max(best[position], above)
    return best


def add(facts: list[Fact], new: Fact) -> None:
    """Append a fact, and mark a contradicting fact as superseded.

    Of two facts with different values, the one with the earlier `valid_from` ends on the day on which the later one
    starts, whichever was said first. Facts that start on the same day are both true.
    """
    facts.append(new)
    for i, old in enumerate(facts[:-1]):
        if old.superseded_by is not None or old.valid_from == new.valid_from or not contradict(old, new):
            continue
        earlier, later = (i, len(facts) - 1) if old.valid_from < new.valid_from else (len(facts) - 1, i)
        ends = [end for end in (facts[earlier].valid_to, facts[later].valid_from) if end is not None]
        facts[earlier] = replace(facts[earlier], valid_to=min(ends), superseded_by=later)


def contradict(a: Fact, b: Fact) -> bool:
    """Return True if two facts have different values for the same attribute of the same subject, compared by stems."""
    if term_counts(a.subject).keys() != term_counts(b.subject).keys() or term_counts(a.value) == term_counts(b.value):
        return False
    one, other = term_counts(a.attribute).keys(), term_counts(b.attribute).keys()
    return bool(one & other) and len(one & other) >= SIMILAR * len(one | other)


def world_time(value: str, said: date) -> tuple[date, date | None]:
    """Return the first and the last day on which a value is true, from the dates in it.

    The earliest date is the start, a date after `until` the end. Without a start, it is the day on which it was said.
    """
    begins: list[date] = []
    end = None
    for when in dates.find(value, said):
        start = when.span[0]
        around = value[:start].split()[-1:] + value[start:].split()[:1]
        if {"until", "till"} & {word.lower() for word in around}:
            end = when.end
        else:
            begins.append(when.start)
    begin = min(begins, default=said)
    return (begin if end is None else min(begin, end)), end


_LINE = re.compile(
    r"(?:lines?|turns?)?\s*#?(\d{1,4}(?:\s*(?:[,&–-]|and)\s*\d{1,4})*)\s*[:|)\].-]\s*(.+)", re.IGNORECASE
)
_HEADING = {"subject", "person", "attribute", "value"}


def parse(lines: Iterable[str], *, turns: int) -> list[tuple[tuple[int, ...], str, str, str]]:
    """Return (turn numbers, subject, attribute, value) of each line with turn numbers and at least two parts.

    With two parts, the attribute is empty. Other lines, and numbers above `turns`, are dropped.
    """
    found = []
    for line in lines:
        if not (match := _LINE.match(line.strip("| ([*"))):
            continue
        parts = [part.strip(" \"'()[]*") for part in match[2].split("|")]
        parts = [part for part in parts if re.search(r"\w", part)]
        numbers = _numbers(match[1], turns)
        if not numbers or len(parts) < 2 or {part.lower() for part in parts} <= _HEADING:
            continue
        subject, *attribute, value = parts if len(parts) < 4 else [*parts[:2], ", ".join(parts[2:])]
        found.append((numbers, subject, "".join(attribute), value))
    return list(dict.fromkeys(found))


def _numbers(text: str, turns: int) -> tuple[int, ...]:
    """Return the distinct numbers in a list like `3, 5-7` that are from 1 to `turns`."""
    found: list[int] = []
    for first, last in re.findall(r"(\d+)(?:\s*[–-]\s*(\d+))?", text):
        found += range(max(int(first), 1), min(int(last or first), turns) + 1)
    return tuple(dict.fromkeys(found))
