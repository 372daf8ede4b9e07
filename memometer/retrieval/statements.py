"""Statements of the form `my X is V`: which of them are superseded, withdrawn, or contradicted by a third party's text.

The rules look at the best-ranked turns only and know few forms, so that they change nothing where they do not apply.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice

from memometer.memory import Turn

POOL = 256
"""Number of the best-ranked turns that the rules look at."""

_SUBJECT = r"(?P<topic>[\w-]+(?: [\w'-]+){0,6}?)"
_VALUE = r"(?P<value>[^.!?;\n]{1,60})"
_OWN = re.compile(
    rf"(?P<whose>\b[Mm]y|\b[A-Z][\w-]+(?: [A-Z][\w-]+)?['’]s) {_SUBJECT} (?P<verb>is now|is|was|used to be|"
    rf"(?:has )?changed to|(?:has )?moved to) {_VALUE}"
)
_WITHDRAW = re.compile(
    rf"(?:^|[.!?] |\b[Pp]lease,? )(?:forget|delete|erase|Forget|Delete|Erase)"
    rf"(?: (?:what I (?:said|told you) about|about|everything about))? my {_SUBJECT}(?=[.,!?;]|$)"
)
_QUOTED = re.compile(
    r"^\W*(?:pasted from|copied from|forwarded|fwd?:|begin forwarded|from:|-+ ?original message)", re.IGNORECASE
)
_INSTRUCTS = re.compile(
    r"\b(?:ignore|disregard|forget) (?:all |any |the |your )*(?:earlier|previous|prior|above|other)\b"
    r"|\bfor every question\b|\balways (?:answer|reply|repeat|say|show)\b|\bsystem prompt\b",
    re.IGNORECASE,
)
_PAST = re.compile(
    r"\b(?:was|were|did|had|used to|at first|original(?:ly)?|initial(?:ly)?|before|previous(?:ly)?|former(?:ly)?"
    r"|earlier|ago)\b",
    re.IGNORECASE,
)
_SOURCE = re.compile(r"[\w-]+(?:[@.][\w-]+)+")
_PEOPLE = {None, "", "user", "assistant"}


@dataclass(frozen=True, slots=True)
class Statement:
    """A value that a turn states for a person's topic, as present or as past."""

    person: str
    topic: str
    value: str
    present: bool


@dataclass(frozen=True, slots=True)
class Reading:
    """The parts of a turn that the rules need.

    Attributes:
        stated: its statements. `my` means the speaker; in the text of a third party, the person named before a colon.
        foreign: True if it shows the text of someone who does not take part: a page, a mail, the result of a tool.
        instructs: True if that text gives instructions.
        withdrawn: topics that the speaker asks to forget.
    """

    stated: tuple[Statement, ...]
    foreign: bool
    instructs: bool
    withdrawn: tuple[str, ...]


def reading(turn: Turn) -> Reading:
    """Return what the rules need of a turn."""
    return _read(turn.text, turn.speaker, turn.role)


@lru_cache(maxsize=1 << 16)
def _read(text: str, speaker: str, role: str | None) -> Reading:
    foreign = role not in _PEOPLE or _QUOTED.match(text) is not None
    withdraws = "orget" in text or "elete" in text or "rase" in text
    return Reading(
        tuple(_statements(text, speaker, foreign)),
        foreign,
        foreign and _INSTRUCTS.search(text) is not None,
        tuple(match["topic"].casefold() for match in _WITHDRAW.finditer(text)) if withdraws else (),
    )


def _statements(text: str, speaker: str, foreign: bool) -> Iterator[Statement]:
    for match in _OWN.finditer(text):
        whose, value = match["whose"], match["value"].strip()
        if not re.search(r"\d|[A-Z]", value):  # numbers, names and dates only
            continue
        quoted = re.search(r"([A-Z][\w-]+): $", text[: match.start()]) if foreign else None
        person = (quoted[1] if quoted else speaker) if whose.lower() == "my" else whose[:-2]
        present = match["verb"] not in ("was", "used to be")
        yield Statement(person.casefold(), match["topic"].casefold(), value.removesuffix(" now"), present)


def arranged(turns: Sequence[Turn], ranking: Iterable[int], question: str) -> Iterator[int]:
    """Move turns down that should not be in the way of the answer.

    These are superseded values, unless the question is about the past; text of third parties that gives instructions
    or states what a person states otherwise, unless the question names its source; and statements that their speaker
    asked to forget, which are left out.

    Args:
        turns: all turns, in time order.
        ranking: positions, the best first.
        question: the question.

    Yields:
        Positions: the others in their order, then those that were moved down.
    """
    rest = iter(ranking)
    pool = list(islice(rest, POOL))
    read = {position: reading(turns[position]) for position in pool}
    own = {position: found.stated for position, found in read.items() if found.stated and not found.foreign}
    down = set() if _PAST.search(question) else _superseded(own)
    topics = {(one.person, one.topic) for stated in own.values() for one in stated}
    for position, found in read.items():
        contradicts = found.foreign and any((one.person, one.topic) in topics for one in found.stated)
        if (contradicts or found.instructs) and not _names_source(question, turns[position]):
            down.add(position)
    out = _withdrawn(read, own, turns)
    first = (position for position in pool if position not in down and position not in out)
    last = (position for position in pool if position in down and position not in out)
    return chain(first, last, rest)


def _withdrawn(read: dict[int, Reading], own: dict[int, tuple[Statement, ...]], turns: Sequence[Turn]) -> set[int]:
    """Return the positions of statements that their speaker asked to forget later."""
    found: set[int] = set()
    for position, asked in read.items():
        speaker = turns[position].speaker
        for topic in () if asked.foreign else asked.withdrawn:
            key = speaker.casefold(), topic
            found |= {
                at for at, stated in own.items() if at < position and turns[at].speaker == speaker
                and any((one.person, one.topic) == key for one in stated)
            }  # fmt: skip
    return found


def _superseded(own: dict[int, tuple[Statement, ...]]) -> set[int]:
    """Return the positions of statements to which a later one of the same topic gives another value."""
    newest: dict[tuple[str, str], str] = {}
    for position in sorted(own):
        newest.update({(one.person, one.topic): one.value for one in own[position] if one.present})
    return {
        position
        for position, stated in own.items()
        if all(newest.get((one.person, one.topic), one.value) != one.value for one in stated)
    }


def _names_source(question: str, turn: Turn) -> bool:
    """Return True if a question names the site, the sender or the tool of a text."""
    asked = question.casefold()
    sources = [turn.speaker] if turn.role not in _PEOPLE else _SOURCE.findall(turn.text[:80])
    return any(source.casefold() in asked for source in sources)
