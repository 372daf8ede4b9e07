"""The index of a conversation's turns: terms, speakers, sessions, dates and surface features. It calls no model.

The index is append-only and consists of plain arrays, so that a state can be compared, copied and saved.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from memometer.memory import Turn
from memometer.retrieval import dates, passages
from memometer.retrieval.speakers import addressed
from memometer.retrieval.tokenize import char_ngrams, terms

_NUMBER = re.compile(r"\b(?:\d+|two|three|four|five|six|seven|eight|nine|ten|once|twice)\b", re.IGNORECASE)
_YOU = re.compile(r"\b(?:you|your|you're)\b", re.IGNORECASE)
_SELF = re.compile(r"\b(?:i|my|me|we|our|i'm|i've)\b", re.IGNORECASE)

SHAPE = (
    "ends_in_question",
    "holds_question",
    "image",
    "numbers",
    "log_words",
    "dates",
    "names",
    "self",
    "you",
    "exclaims",
)
"""Surface features of a turn, one column each."""


@dataclass(slots=True)
class Postings:
    """The occurrences of a term: turn positions (ascending), and the count in each. An index has very many of these."""

    positions: array[int] = field(default_factory=lambda: array("i"))
    counts: array[int] = field(default_factory=lambda: array("i"))


@dataclass
class TurnIndex:
    """The ranking data of one conversation's turns, in time order. Sessions are numbered from 0.

    Attributes:
        postings: by term, and by character n-gram, which starts with an underscore.
        lengths: terms per turn.
        gram_lengths: character n-grams per turn.
        vocabulary: the terms, in order of first occurrence.
        numbers: the position of each term in `vocabulary`.
        sequence: the terms of all turns in order, as positions in `vocabulary`.
        ends: the end of each turn in `sequence`.
        passage_turn: the turn of each passage, for the turns that are longer than a passage.
        passage_end: the end of that passage in `sequence`.
        speakers: the speakers, in order of first turn.
        speaker: the speaker of each turn, as a position in `speakers`.
        session: the session of each turn.
        session_starts: the first turn of each session.
        days: the day of each turn (`date.toordinal`).
        shape: the surface features (`SHAPE`) of all turns, end to end.
        when_turn: the turn of each date that a turn mentions.
        when_start: the first day of that date.
        when_end: the last day of that date.
        last_session: the session number of the last turn.
        roles: the role of each speaker, if the data have one, otherwise empty.
        addressed: for each speaker, the names with which that speaker addresses the others, and how often.
    """

    postings: dict[str, Postings] = field(default_factory=dict)
    lengths: array[int] = field(default_factory=lambda: array("i"))
    gram_lengths: array[int] = field(default_factory=lambda: array("i"))
    vocabulary: list[str] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)
    sequence: array[int] = field(default_factory=lambda: array("i"))
    ends: array[int] = field(default_factory=lambda: array("i"))
    passage_turn: array[int] = field(default_factory=lambda: array("i"))
    passage_end: array[int] = field(default_factory=lambda: array("i"))
    speakers: list[str] = field(default_factory=list)
    speaker: array[int] = field(default_factory=lambda: array("i"))
    session: array[int] = field(default_factory=lambda: array("i"))
    session_starts: array[int] = field(default_factory=lambda: array("i"))
    days: array[int] = field(default_factory=lambda: array("i"))
    shape: array[float] = field(default_factory=lambda: array("f"))
    when_turn: array[int] = field(default_factory=lambda: array("i"))
    when_start: array[int] = field(default_factory=lambda: array("i"))
    when_end: array[int] = field(default_factory=lambda: array("i"))
    last_session: int | None = None
    roles: list[str] = field(default_factory=list)
    addressed: list[dict[str, int]] = field(default_factory=list)

    @classmethod
    def of(cls, turns: Sequence[Turn]) -> TurnIndex:
        """Return the index of turns."""
        index = cls()
        index.add(turns)
        return index

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def computed(self) -> dict[str, Any]:
        """Values that were computed of these turns, until a turn is added. They are not copied, compared or saved."""
        return {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "computed"}

    def add(self, turns: Sequence[Turn]) -> None:
        """Append turns, in time order. A new session starts when the turns' session number changes."""
        self.computed.clear()
        for turn in turns:
            position = len(self)
            if turn.session != self.last_session:
                self.last_session = turn.session
                self.session_starts.append(position)
            if turn.speaker not in self.speakers:
                self.speakers.append(turn.speaker)
                self.roles.append(turn.role or "")
                self.addressed.append({})
            self.speaker.append(speaker := self.speakers.index(turn.speaker))
            self.days.append(turn.said_at.toordinal())
            self.session.append(len(self.session_starts) - 1)
            for name in addressed(turn.text):
                self.addressed[speaker][name] = self.addressed[speaker].get(name, 0) + 1
            text = f"{turn.text} {turn.caption or ''}"
            spans = passages.spans(turn.text)
            if len(spans) == 1:
                words = terms(text)
            else:
                words = []
                for start, end in spans:
                    words += terms(turn.text[start:end])
                    self.passage_turn.append(position)
                    self.passage_end.append(len(self.sequence) + len(words))
                words += terms(turn.caption or "")
            self.lengths.append(len(words))
            ngrams = char_ngrams(text)
            self.gram_lengths.append(len(ngrams))
            for term in words:
                if term not in self.numbers:
                    self.numbers[term] = len(self.vocabulary)
                    self.vocabulary.append(term)
                self.sequence.append(self.numbers[term])
            self.ends.append(len(self.sequence))
            for term, count in Counter(words + ngrams).items():
                if (postings := self.postings.get(term)) is None:
                    postings = self.postings[term] = Postings()
                postings.positions.append(position)
                postings.counts.append(count)
            mentioned = dates.find(turn.text, turn.said_at.date())
            for when in mentioned:
                self.when_turn.append(position)
                self.when_start.append(when.start.toordinal())
                self.when_end.append(when.end.toordinal())
            self.shape.extend(_shape(turn, len(mentioned)))


def _shape(turn: Turn, dates_found: int) -> list[float]:
    text = turn.text.strip()
    return [
        float(text.endswith("?")),
        float("?" in text),
        float(turn.caption is not None),
        float(len(_NUMBER.findall(text))),
        float(np.log(max(1, len(turn.line.split())))),
        float(dates_found),
        float(len(re.findall(r"(?<![.!?] )(?<!^)\b[A-Z][a-z]+", text))),
        float(len(_SELF.findall(text))),
        float(len(_YOU.findall(text))),
        float(text.count("!")),
    ]
