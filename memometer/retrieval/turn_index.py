"""What is known of every turn of a conversation, kept in step as turns arrive. No model is called.

Everything is append-only and held in plain arrays, so that a state can be compared, copied and saved; a question turns
them into NumPy arrays, which costs microseconds.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from memometer.memory import Turn
from memometer.retrieval import dates
from memometer.retrieval.tokenize import grams, terms

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
"""What is written down of a turn's form, one column each."""


@dataclass(slots=True)
class Postings:
    """Where a term stands: turn positions (ascending) and how often in each. There are very many of these."""

    positions: array[int] = field(default_factory=lambda: array("i"))
    counts: array[int] = field(default_factory=lambda: array("i"))


@dataclass
class Index:
    """The turns of one conversation, taken apart for ranking. Rows are in time order; sessions are numbered from 0.

    `postings` knows terms and, with an underscore before them, runs of letters. `sequence` holds the terms of all
    turns in their order, as positions in `vocabulary`; those of turn n end at `ends[n]`.
    """

    postings: dict[str, Postings] = field(default_factory=dict)
    lengths: array[int] = field(default_factory=lambda: array("i"))
    gram_lengths: array[int] = field(default_factory=lambda: array("i"))
    vocabulary: list[str] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)
    sequence: array[int] = field(default_factory=lambda: array("i"))
    ends: array[int] = field(default_factory=lambda: array("i"))
    speakers: list[str] = field(default_factory=list)
    speaker: array[int] = field(default_factory=lambda: array("i"))
    session: array[int] = field(default_factory=lambda: array("i"))
    session_starts: array[int] = field(default_factory=lambda: array("i"))
    session_days: array[int] = field(default_factory=lambda: array("i"))
    shape: array[float] = field(default_factory=lambda: array("f"))
    when_turn: array[int] = field(default_factory=lambda: array("i"))
    when_start: array[int] = field(default_factory=lambda: array("i"))
    when_end: array[int] = field(default_factory=lambda: array("i"))
    last_session: int | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def add(self, turns: Sequence[Turn]) -> None:
        """Append turns, in time order; a new session begins where the turn's session number changes."""
        for turn in turns:
            position = len(self)
            if turn.session != self.last_session:
                self.last_session = turn.session
                self.session_starts.append(position)
                self.session_days.append(turn.said_at.toordinal())
            if turn.speaker not in self.speakers:
                self.speakers.append(turn.speaker)
            self.speaker.append(self.speakers.index(turn.speaker))
            self.session.append(len(self.session_starts) - 1)
            said = f"{turn.text} {turn.caption or ''}"
            words = terms(said)
            self.lengths.append(len(words))
            letters = grams(said)
            self.gram_lengths.append(len(letters))
            for term in words:
                if term not in self.numbers:
                    self.numbers[term] = len(self.vocabulary)
                    self.vocabulary.append(term)
                self.sequence.append(self.numbers[term])
            self.ends.append(len(self.sequence))
            for term, count in Counter(words + letters).items():
                if (postings := self.postings.get(term)) is None:
                    postings = self.postings[term] = Postings()
                postings.positions.append(position)
                postings.counts.append(count)
            found = dates.find(turn.text, turn.said_at.date())
            for when in found:
                self.when_turn.append(position)
                self.when_start.append(when.start.toordinal())
                self.when_end.append(when.end.toordinal())
            self.shape.extend(_shape(turn, len(found)))


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
