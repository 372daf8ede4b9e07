"""Rich mode: facts that a model reads out of each session, as further keys to the turns they come from.

Turns stay what is kept and printed; a fact only says in other words, or with its date, what its turns are about. Off
unless asked for: measured at equal total tokens it has not paid for its calls (docs/experiments.md).
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
"""What asks for how things are now. Narrow on purpose: a question that is missed still has every key."""

SIMILAR = 0.5
"""The share of stems from which on two attributes are the same one (Jaccard)."""


# No example: small models copy it into their answers as a fact.
class ExtractFacts(dspy.Signature):
    """List the facts that the numbered lines tell. One line for each, in the form: number | person | attribute | \
value"""

    session: str = dspy.InputField()
    rows: str = dspy.OutputField()


@dataclass(frozen=True, slots=True)
class Fact:
    """What the turns at `positions` (0-based, in `state.turns`) tell about a subject, in two times.

    It was told at `said_at`. In the world it holds from `valid_from` to `valid_to`, None while no end is known.
    `superseded_by` is the place in `state.facts` of the fact that took over; both are kept.
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
        return f"{self.subject} {self.attribute} {self.value}"


@dataclass
class FactsState(IndexedState):
    """An IndexedState with the facts read from its turns, in the order in which they were told."""

    facts: list[Fact] = field(default_factory=list)


class FactAugmented(WritingMemory[IndexedState], AdaptiveMemory):
    """The adaptive memory, with a bonus for the turns behind the facts that match the question.

    Args:
        fact_weight: what a fact that matches one standard deviation better than the mean fact adds to its turns, in
            standard deviations of the turns' own scores; 0 leaves the ranking as it is.
        adaptive: the parameters of AdaptiveMemory.
    """

    state_type = FactsState
    shows_turns = True

    def __init__(self, *, fact_weight: float = 0.1, **adaptive: Any) -> None:
        super().__init__(**adaptive)
        self.fact_weight = fact_weight
        self.extract = dspy.Predict(ExtractFacts)

    def listed(self, session: Sequence[Turn]) -> list[str]:
        """The lines in which the model lists the facts of a session: one call."""
        said = session[0].header + "".join(f"{i} {turn.line}" for i, turn in enumerate(session, start=1))
        return ask(self.extract, session=said)

    # The state is the one that `new` makes.
    def write(self, state: FactsState, session: Sequence[Turn]) -> None:  # type: ignore[override]
        first = len(state.turns)
        said_at = session[0].said_at
        for numbers, subject, attribute, value in parse(self.listed(session), turns=len(session)):
            positions = tuple(first + number - 1 for number in numbers)
            valid_from, valid_to = world_time(value, said_at.date())
            add(state.facts, Fact(subject, attribute, value, positions, said_at, valid_from, valid_to))

    def scores(self, state: FactsState, question: str, follow_up_queries: Sequence[str] = ()) -> np.ndarray:  # type: ignore[override]
        own = super().scores(state, question, follow_up_queries)
        if not state.facts:
            return own
        bonus = np.max([by_facts(state, asked) for asked in (question, *follow_up_queries)], axis=0)
        # Where all turns score the same, the facts alone decide.
        return own + self.fact_weight * (float(own.std()) or 1.0) * bonus


def by_facts(state: FactsState, question: str) -> np.ndarray:
    """How well the best fact of each turn matches the question, shape (turns,): its BM25 in standard deviations above
    the mean fact, 0 where there is none. What is superseded counts unless the question is about now."""
    now = NOW.search(question)
    facts = [fact for fact in state.facts if not now or fact.superseded_by is None]
    found = bm25_scores([term_counts(fact.text) for fact in facts], question)
    best = np.zeros(len(state.turns))
    for fact, above in zip(facts, (found - found.mean()) / (found.std() or 1.0), strict=True):
        for position in fact.positions:
            best[position] = max(best[position], above)
    return best


def add(facts: list[Fact], new: Fact) -> None:
    """Append a fact. Of two with another value for the same thing, the one that began earlier in the world is
    superseded from the day on which the later one began, whichever was told first; of one day, both hold."""
    facts.append(new)
    for i, old in enumerate(facts[:-1]):
        if old.superseded_by is not None or old.valid_from == new.valid_from or not contradict(old, new):
            continue
        earlier, later = (i, len(facts) - 1) if old.valid_from < new.valid_from else (len(facts) - 1, i)
        ends = [end for end in (facts[earlier].valid_to, facts[later].valid_from) if end is not None]
        facts[earlier] = replace(facts[earlier], valid_to=min(ends), superseded_by=later)


def contradict(a: Fact, b: Fact) -> bool:
    """Whether two facts give the same attribute of the same subject another value, by their stems."""
    if term_counts(a.subject).keys() != term_counts(b.subject).keys() or term_counts(a.value) == term_counts(b.value):
        return False
    one, other = term_counts(a.attribute).keys(), term_counts(b.attribute).keys()
    return bool(one & other) and len(one & other) >= SIMILAR * len(one | other)


def world_time(value: str, said: date) -> tuple[date, date | None]:
    """From when to when a value holds, by the dates in it: the earliest is its beginning, one after `until` its end.
    Without a beginning it is the day on which it was said."""
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
    """(numbers, subject, attribute, value) of each line that has numbers of turns, 1 to `turns`, and two parts or more;
    of two, the attribute is empty. Other lines and numbers are dropped."""
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
    """The numbers in `3, 5-7`, each once, that are from 1 to `turns`."""
    found: list[int] = []
    for first, last in re.findall(r"(\d+)(?:\s*[–-]\s*(\d+))?", text):
        found += range(max(int(first), 1), min(int(last or first), turns) + 1)
    return tuple(dict.fromkeys(found))
