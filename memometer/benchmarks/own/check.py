"""Checks of own conversations: every fault as a sentence, and what a sound file loses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from memometer.benchmarks.own import locomo_shape
from memometer.benchmarks.own.faults import kind, place_of, quoted, sentences
from memometer.benchmarks.own.schema import OwnConversation, OwnQuestion, OwnTurn
from memometer.benchmarks.own.times import instant, parse_time

MAX_NAMED = 3
"""Examples that a sentence about a loss names."""


@dataclass
class Checked:
    """The result of a check.

    Attributes:
        conversations: The conversations without faults, each with the times of its turns.
        faults: A sentence per fault.
        losses: A sentence per kind of loss.
    """

    conversations: list[tuple[OwnConversation, list[datetime]]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)


def check(entries: Iterable[tuple[str, Any]]) -> Checked:
    """Check conversations.

    Args:
        entries: Each conversation with its place: the file, and its line or position.

    Returns:
        The sound conversations, the faults and the losses.
    """
    found = Checked()
    unread: Counter[str] = Counter()
    places: dict[str, str] = {}
    for where, entry in entries:
        if not isinstance(entry, Mapping):
            found.faults.append(f"{where}: a conversation is {kind(entry)}; expected an object.")
            continue
        names: Mapping[str, str] = {}
        faults: list[str] = []
        shaped = dict(entry)
        if locomo_shape.is_locomo_shaped(entry):
            names = locomo_shape.NAMES
            shaped, faults = locomo_shape.convert(entry)
        id = shaped.get("id")
        usable = isinstance(id, str | int) and str(id).isprintable()
        place = f"{where}, conversation {str(id)[:60]}" if usable else where
        if names and "turns" not in shaped:
            found.faults += [f"{place}: {fault}." for fault in faults]
            continue
        try:
            conversation = OwnConversation.model_validate(shaped)
        except ValidationError as error:
            faults += sentences(error, shaped, names)
        else:
            if names:
                _repair_evidence(conversation)
            times, more = _check_turns(conversation, names)
            faults += [*more, *_check_questions(conversation)]
            if conversation.id in places:
                faults.append(
                    f"{names.get('id', 'id')} is also that of another conversation ({places[conversation.id]})"
                )
            places.setdefault(conversation.id, where)
            if not faults:
                found.conversations.append((conversation, times))
            _count_unread(conversation, unread)
        found.faults += [f"{place}: {fault}." for fault in faults]
    found.losses = [
        f"The field {name} is not read ({n:,} {'time' if n == 1 else 'times'})." for name, n in unread.items()
    ]
    found.losses += _losses([conversation for conversation, _ in found.conversations])
    return found


def _repair_evidence(conversation: OwnConversation) -> None:
    known = {turn.id for turn in conversation.turns}
    for question in conversation.questions:
        repaired = [
            id
            for string in question.evidence
            for id in ([string] if string in known else locomo_shape.repaired_evidence(string) or [string])
        ]
        question.evidence = list(dict.fromkeys(repaired))


def _check_turns(conversation: OwnConversation, names: Mapping[str, str]) -> tuple[list[datetime], list[str]]:
    """The time of every turn, and the faults that involve several fields or turns."""
    faults: list[str] = []
    times: list[datetime] = []
    positions: dict[str, int] = {}
    for n, turn in enumerate(conversation.turns):
        place = place_of("turn", n, turn.id)
        if turn.id in positions:
            name = names.get("turns.id", "id")
            faults.append(f"{place}, {name} is also that of turn {positions[turn.id]}")
        positions.setdefault(turn.id, n)
        if not turn.text.strip() and not (turn.caption or "").strip():
            faults.append(f"{place}, text is empty, and the turn has no {names.get('turns.caption', 'caption')}")
        if conversation.speakers is not None and turn.speaker not in conversation.speakers:
            faults.append(
                f"{place}, speaker is {quoted(turn.speaker)}, which is not in {names.get('speakers', 'speakers')}"
            )
        faults += [f"{place}, {fault}" for fault in _time(turn, times, names)]
    return times, faults


def _time(turn: OwnTurn, times: list[datetime], names: Mapping[str, str]) -> list[str]:
    """Append the time of a turn to those of the turns before it, and return what is wrong with it."""
    name = names.get("turns.time", "time")
    name = f"session_{turn.session}_date_time or {name}" if names and turn.session else name
    if turn.time is None:
        if not times:
            return [] if names else [f"{name} is missing, and the first turn needs one"]
        times.append(times[-1])
        return []
    time = parse_time(turn.time)
    if time is None:
        return [f"{name} is {quoted(turn.time)}; expected an ISO 8601 time, such as 2024-03-03T18:12:00"]
    before = times[-1] if times else time
    times.append(time)
    if (before.tzinfo is None) != (time.tzinfo is None):
        return [
            f"{name} {quoted(turn.time)} has a zone and the time before it has none, or the reverse; "
            "use zones everywhere or nowhere"
        ]
    if instant(time) < instant(before):
        return [f"{name} {quoted(turn.time)} is before the time of the turn before it"]
    return []


def _check_questions(conversation: OwnConversation) -> list[str]:
    faults: list[str] = []
    known = {turn.id for turn in conversation.turns}
    positions: dict[str, int] = {}
    for n, question in enumerate(conversation.questions):
        place = place_of("question", n, question.id)
        if question.id is not None and question.id in positions:
            faults.append(f"{place}, id is also that of question {positions[question.id]}")
        if question.id is not None:
            positions.setdefault(question.id, n)
        if fault := _answer_fault(question):
            faults.append(f"{place}, {fault}")
        faults += [f"{place}, evidence names {quoted(id)}, which is not the id of a turn" for id in question.evidence
                   if id not in known]  # fmt: skip
    return faults


def _answer_fault(question: OwnQuestion) -> str:
    given = question.model_fields_set & {"answer", "answers"}
    if question.unanswerable:
        return f"{min(given)} is given, and the question is unanswerable; leave one of them out" if given else ""
    if not given:
        return "answer is missing; give answer, answers, or unanswerable: true"
    return "answer and answers are both given; leave one of them out" if len(given) > 1 else ""


def _count_unread(conversation: OwnConversation, unread: Counter[str]) -> None:
    for level, shapes in (
        ("conversations", [conversation]), ("turns", conversation.turns), ("questions", conversation.questions)
    ):  # fmt: skip
        for shape in shapes:
            unread.update(f"{name!r} of {level}" for name in shape.model_extra or ())


def _losses(conversations: Sequence[OwnConversation]) -> list[str]:
    questions = [(c.id, n, q) for c in conversations for n, q in enumerate(c.questions)]
    without = [f"conversation {c}, {place_of('question', n, q.id)}" for c, n, q in questions
               if not q.evidence and not q.unanswerable]  # fmt: skip
    late = sum(turn.time is None for c in conversations for turn in c.turns)
    silent = [c.id for c in conversations if not c.questions]
    asked = [conversation.id for conversation in conversations if conversation.questions]
    return [
        *_loss(
            without,
            "has no evidence, so evidence recall leaves it out",
            "have no evidence, so evidence recall leaves them out",
            "question",
        ),
        *([f"{late:,} turns have no time of their own and take that of the turn before."] if late else []),
        *(_loss(silent, "has no questions", "have no questions", "conversation") if asked else []),
    ]


def _loss(places: Sequence[str], one: str, many: str, noun: str) -> list[str]:
    if not places:
        return []
    named = "; ".join(places[:MAX_NAMED]) + ("; …" if len(places) > MAX_NAMED else "")
    return [f"{len(places):,} {noun}{'' if len(places) == 1 else 's'} {one if len(places) == 1 else many} ({named})."]
