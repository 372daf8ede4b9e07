"""The parts of a synthetic conversation: sentences that state facts, turns, and questions with their evidence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from memometer.memory import Turn, format_date
from memometer.synthetic.draw import Draw

NUMBERS = ("two", "three", "four", "five", "six")


@dataclass(frozen=True)
class LabelledQuestion:
    """A question, its answer, the ids of the turns that are its evidence, and its kind."""

    text: str
    answer: str
    evidence: tuple[str, ...]
    kind: str


@dataclass(frozen=True)
class SyntheticConversation:
    """A conversation with labelled questions.

    Attributes:
        id: its name.
        style: how it was made: letters, chat or assistant.
        turns: the turns in time order.
        questions: the questions.
    """

    id: str
    style: str
    turns: tuple[Turn, ...]
    questions: tuple[LabelledQuestion, ...]


@dataclass
class Fact:
    """A fact of one speaker.

    Attributes:
        family: its family.
        speaker: position of the speaker.
        slots: slot -> the value and its wider terms.
        day: the day on which it happened; None if no time was given.
        told: slot -> id of the turn that states it.
        said_on: the day of its first statement.
    """

    family: Any
    speaker: int
    slots: dict[str, tuple[str, ...]]
    day: datetime | None = None
    told: dict[str, str] = field(default_factory=dict)
    said_on: datetime | None = None


@dataclass
class Sentence:
    """A sentence of a turn, and the slots of a fact that it states."""

    text: str
    fact: Fact | None = None
    slots: frozenset[str] = frozenset()


class Transcript:
    """Collects turns and notes which of them state a fact.

    Args:
        speakers: the names of the speakers.
    """

    def __init__(self, speakers: tuple[str, ...]) -> None:
        self.speakers = speakers
        self.turns: list[Turn] = []
        self.session, self.said_at, self._number = 0, datetime(2023, 1, 1), 0

    def begin(self, said_at: datetime) -> None:
        """Begin a session."""
        self.session, self.said_at, self._number = self.session + 1, said_at, 0

    def add(self, speaker: int, text: str, told: Iterable[Sentence] = (), caption: str | None = None) -> str:
        """Append a turn, note the facts that its sentences state, and return its id."""
        self._number += 1
        id = f"D{self.session}:{self._number}"
        self.turns.append(Turn(id, self.speakers[speaker], text, self.session, self.said_at, caption))
        for sentence in told:
            if sentence.fact:
                sentence.fact.said_on = sentence.fact.said_on or self.said_at
                for slot in sentence.slots:
                    sentence.fact.told.setdefault(slot, id)
        return id


def past_day(draw: Draw, said_at: datetime) -> tuple[str, datetime]:
    """Draw an expression for a day in the past, and the day."""
    n = draw.between(0, len(NUMBERS) - 1)
    kind = draw.pick(
        ("yesterday", "yesterday", "today", "weekday", "weekday", "week", "weekend", "ago", "month", "date", "year")
    )
    if kind == "yesterday":
        return draw.pick(("yesterday", "last night")), said_at - timedelta(days=1)
    if kind == "today":
        return draw.pick(("today", "this morning", "earlier today")), said_at
    if kind == "weekday":
        day = said_at - timedelta(days=draw.between(1, 6))
        return draw.pick((f"last {day:%A}", f"on {day:%A}")), day
    if kind == "week":
        return "last week", said_at - timedelta(days=7)
    if kind == "weekend":
        return "last weekend", said_at - timedelta(days=said_at.weekday() + 2)
    if kind == "ago":
        return f"{NUMBERS[n]} {draw.pick(('days', 'weeks'))} ago", said_at - timedelta(days=n + 2)
    if kind == "month":
        return "last month", said_at.replace(day=1) - timedelta(days=10)
    if kind == "date":
        day = said_at - timedelta(days=draw.between(3, 40))
        return draw.pick((f"on {day:%B} {day.day}", f"on the {day.day}th of {day:%B}")), day
    return draw.pick(("last year", "a year ago")), said_at.replace(year=said_at.year - 1, day=1)


def date_words(draw: Draw, day: datetime) -> str:
    """Draw an expression for a day as a question gives it, with its preposition."""
    return draw.pick(
        (
            f"on {format_date(day)}",
            f"on {day:%B} {day.day}, {day.year}",
            f"on {day.day} {day:%b} {day.year}",
            f"on {day:%d.%m.%Y}",
            f"on {day:%Y-%m-%d}",
            f"in {day:%B} {day.year}",
            f"in {day:%B}, {day.year}",
            f"around {format_date(day)}",
        )
    )
