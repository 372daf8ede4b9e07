"""Own conversations as data: files or a folder, checked, with splits made from them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

from memometer.benchmarks import json_files
from memometer.benchmarks.own.check import Checked, check
from memometer.benchmarks.own.question import Question
from memometer.benchmarks.own.schema import OwnConversation, OwnQuestion
from memometer.benchmarks.own.times import instant
from memometer.benchmarks.protocol import Conversation, DataError, Dataset, Session
from memometer.benchmarks.splits import SeededSplits
from memometer.memory import Turn

PAUSE = timedelta(hours=6)
"""A longer pause starts a new session, unless the turns have session labels."""

UNCATEGORIZED = "uncategorized"


def examine(path: str | Path) -> tuple[Checked, dict[str, str], str, Path]:
    """Read and check a file or folder without stopping at a fault.

    Args:
        path: A JSON or JSON Lines file, or a folder of such files.

    Returns:
        What the check found, the `name` and `licence` that the files give, the digest, and the path.

    Raises:
        DataError: A file cannot be read or is not JSON.
    """
    path = Path(path).expanduser()
    files, others = json_files.files_of(path) if path.is_dir() else ([path], [])
    entries: list[tuple[str, Any]] = []
    about: dict[str, str] = {}
    digests = []
    unread: list[str] = []
    for file in files:
        content = json_files.read_bytes(file)
        digests.append(json_files.sha256(content))
        for where, value in json_files.values(file, content):
            entries += _conversations(where, value, about, unread)
    digest = digests[0] if not path.is_dir() else hashlib.sha256(repr(digests).encode()).hexdigest()
    found = check(entries)
    if not entries:
        found.faults.append(f"{path}: there is no conversation in it.")
    if others:
        unread.append(f"{len(others)} other files in the folder are not read ({', '.join(others[:3])}).")
    found.losses = [*unread, *found.losses]
    return found, about, digest, path


def _conversations(where: str, value: Any, about: dict[str, str], unread: list[str]) -> list[tuple[str, Any]]:
    """The conversations in one value of a file: a list, an object with `conversations`, or one conversation."""
    if isinstance(value, dict) and "conversations" in value:
        for name in ("name", "licence"):
            if name in value:
                if not isinstance(value[name], str) or not value[name].isprintable() or not value[name].strip():
                    raise DataError(f"{where}: {name} is not a line of text.")
                about.setdefault(name, value[name])
        if others := sorted(set(value) - {"name", "licence", "conversations"}):
            unread.append(f"{where}: the field {others[0]!r} of the file is not read.")
        value = value["conversations"]
        if not isinstance(value, list):
            raise DataError(f"{where}: conversations is not a list.")
    if isinstance(value, list):
        return [(f"{where}, position {n}" if not _has_id(entry) else where, entry) for n, entry in enumerate(value)]
    return [(where, value)]


def _has_id(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("id", entry.get("sample_id")), str | int)


Transform = Callable[[Question, Mapping[str, Any]], Question]
"""(question, further fields of its entry) -> the question of a benchmark with its own rules."""


def conversations_of(
    entries: Iterable[tuple[str, Any]], transform: Transform = lambda question, _: question
) -> Iterator[Conversation]:
    """Check conversations in the documented shape and yield them, for benchmarks that convert their files to it.

    Args:
        entries: Each conversation with its place for messages.
        transform: Makes the benchmark's own kind of question.

    Raises:
        DataError: A conversation has a fault.
    """
    ids: set[str] = set()
    for where, entry in entries:
        found = check([(where, entry)])
        if found.faults:
            raise DataError(found.faults[0])
        for own, times in found.conversations:
            if own.id in ids:
                raise DataError(f"{where}: two conversations have the id {own.id}.")
            ids.add(own.id)
            yield _conversation(own, times, transform)


def conversations_in(path: Path) -> tuple[Conversation, ...]:
    """The conversations of a file, with or without questions.

    Raises:
        DataError: The file has a fault.
    """
    found, *_ = examine(path)
    _refuse_faults(found, path)
    return tuple(_conversation(*each, lambda question, _: question) for each in found.conversations)


def _refuse_faults(found: Checked, path: Path) -> None:
    if found.faults:
        more = len(found.faults) - 1
        rest = f" {more:,} more fault{'s' if more > 1 else ''}: memometer data check {path}" if more else ""
        raise DataError(found.faults[0] + rest)


def load(path: str | Path | None) -> Dataset:
    """Load own conversations.

    Args:
        path: A JSON or JSON Lines file, or a folder of such files.

    Raises:
        DataError: There is no path, or the files have a fault.
    """
    if path is None:
        raise DataError("own conversations need --data FILE; docs/how-to/own-data.md describes the file.")
    found, about, digest, path = examine(path)
    _refuse_faults(found, path)
    conversations = tuple(_conversation(*each, lambda question, _: question) for each in found.conversations)
    keys = list(dict.fromkeys(q.category for c in conversations for q in c.questions))
    keys.sort(key=lambda key: (not key.isdecimal(), int(key) if key.isdecimal() else 0))
    name = about.get("name") or path.stem
    losses = f" {' '.join(found.losses)}" if found.losses else ""
    return Dataset(
        conversations=conversations,
        path=path,
        sha256=digest,
        benchmark="own",
        categories={key: key for key in keys},
        splits=SeededSplits([conversation.id for conversation in conversations]),
        name=name,
        notice=f"Own data: {name}, sha256 {digest[:12]}, {len(conversations)} conversation"
        f"{'' if len(conversations) == 1 else 's'}.{losses}",
        licence=about.get("licence", ""),
    )


def _conversation(own: OwnConversation, times: Sequence[datetime], transform: Transform) -> Conversation:
    turns = [
        Turn(turn.id, turn.speaker, turn.text, session, time, turn.caption or None, turn.role)
        for turn, time, session in zip(own.turns, times, _session_numbers(own, times), strict=True)
    ]
    sessions = tuple(
        Session(number, turns_of[0].said_at, turns_of)
        for number, turns_of in ((n, tuple(group)) for n, group in groupby(turns, key=lambda turn: turn.session))
    )
    return Conversation(
        id=own.id,
        speakers=tuple(own.speakers or dict.fromkeys(turn.speaker for turn in own.turns)),
        sessions=sessions,
        questions=tuple(
            transform(_question(own.id, n, question), question.model_extra or {})
            for n, question in enumerate(own.questions)
        ),
    )


def _session_numbers(own: OwnConversation, times: Sequence[datetime]) -> list[int]:
    """The session of each turn, from 1: rising numbers in the file as they are, other labels and pauses counted."""
    labels = [turn.session for turn in own.turns]
    changes = [label for label, _ in groupby(labels)]
    if all(label and label.isdecimal() and len(label) < 10 for label in changes):
        numbers = [int(str(label)) for label in labels]
        if numbers == sorted(numbers):
            return numbers
    number, found = 1, [1]
    for n in range(1, len(labels)):
        same = labels[n] == labels[n - 1]
        pause = labels[n] is None and instant(times[n]) - instant(times[n - 1]) > PAUSE
        number += not same or pause
        found.append(number)
    return found


def _question(conversation: str, index: int, own: OwnQuestion) -> Question:
    answers = tuple(own.answers) or (own.answer,)
    return Question(
        conversation=conversation,
        index=index,
        text=own.text,
        category=own.category or UNCATEGORIZED,
        gold=None if own.unanswerable else " or ".join(answers),
        evidence=tuple(dict.fromkeys(own.evidence)),
        adversarial_answer=own.wrong_answer if own.unanswerable else None,
        name=own.id or "",
        answers=() if own.unanswerable else answers,
    )
