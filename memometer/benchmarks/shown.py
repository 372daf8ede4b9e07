"""The text that a system showed for a question, in parts by rank, and the measures that a benchmark makes of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from memometer.benchmarks.protocol import Question


class HasMark(Protocol):
    """A turn and a text that only this turn has."""

    @property
    def turn_id(self) -> str: ...
    @property
    def text(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Part:
    """A turn or an item that was shown.

    Attributes:
        text: Its text.
        turn_ids: The turns that it comes from; empty if unknown.
    """

    text: str
    turn_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Shown:
    """The text that a system showed for a question.

    Attributes:
        parts: The parts by rank, or in time order.
        ranked: False if the order of the parts is not a ranking.
    """

    parts: tuple[Part, ...]
    ranked: bool = True

    def place(self, mark: HasMark) -> int | None:
        """Return the position of the first part that shows a turn, by its id or by its text; None if no part does."""
        text = re.compile(rf"(?<!\w){re.escape(mark.text)}(?!\w)") if mark.text else None
        for place, part in enumerate(self.parts):
            if mark.turn_id in part.turn_ids or (text and text.search(part.text)):
                return place
        return None

    def has(self, mark: HasMark) -> bool:
        """Return True if a turn is shown."""
        return self.place(mark) is not None

    def share(self, marks: Sequence[HasMark]) -> float:
        """Return the share of all characters that the parts with one of these turns take."""
        total = sum(len(part.text) for part in self.parts)
        mine = {place for mark in marks if (place := self.place(mark)) is not None}
        return sum(len(self.parts[place].text) for place in mine) / total if total else 0.0


@dataclass(frozen=True, slots=True)
class Answered:
    """A question and what was shown for it.

    Attributes:
        question: The question.
        shown: The text; None if the memory failed.
        tokens: The tokens of the text.
        seconds: The time of the search, and of the answer if a model answered.
    """

    question: Question
    shown: Shown | None
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Measure:
    """Values of one measure of one system.

    Attributes:
        name: Its name.
        group: The group within the measure, such as an age; empty without groups.
        values: `conversation#key` -> value.
        unit: `share`, or the unit of the values.
        low_is_better: True if a small value is good; None if neither is.
    """

    name: str
    group: str
    values: Mapping[str, float] = field(default_factory=dict)
    unit: str = "share"
    low_is_better: bool | None = False
