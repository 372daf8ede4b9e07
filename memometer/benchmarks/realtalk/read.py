"""Reading of REALTALK's published files, with their evidence ids repaired.

The published files lack the pictures' own messages, but evidence names them: the message before or after that carries
the picture is meant. Other evidence strings are ranges (`D12:3-D12:5`) or lists in one string (`D13:4. D14:4`). The day
in an id is that of the chat export, not the number of the session.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from memometer.benchmarks import json_files
from memometer.benchmarks.own.question import Question as OwnQuestion
from memometer.benchmarks.own.read import conversations_of
from memometer.benchmarks.protocol import DataError, Dataset
from memometer.benchmarks.realtalk.question import CATEGORIES, LICENCE, Question
from memometer.benchmarks.splits import SeededSplits
from memometer.benchmarks.user_files import digest_of, in_shape, locate, texts

VARIABLE = "REALTALK_PATH"
SOURCE = "https://github.com/danny911kr/REALTALK (folder data)"
_ID = re.compile(r"D\s*:?\s*(\d+)\s*:\s*0*(\d+)")
_RANGE = re.compile(rf"{_ID.pattern}\s*[-–]\s*(?:{_ID.pattern}|(\d+))")

Key = tuple[int, int]


def load(path: str | Path | None) -> Dataset:
    """Load the chats of a folder, or one of its files.

    Raises:
        DataError: The files are missing or have another shape.
    """
    place = locate(path, title="REALTALK", variable=VARIABLE, source=SOURCE)
    files = sorted(place.glob("Chat_*.json"), key=_number) if place.is_dir() else [place]
    if not files:
        files = sorted((place / "data").glob("Chat_*.json"), key=_number)
    if not files:
        raise DataError(f"{place} has no file Chat_*.json; name the folder `data` of {SOURCE}.")
    raw = [(file, *json_files.read_json(file)) for file in files]
    entries = [(str(file), in_shape(lambda v=value, f=file: _entry(f, v), path=file, title="REALTALK"))  # type: ignore[misc]
               for file, value, _ in raw]  # fmt: skip
    conversations = tuple(conversations_of(entries, _question))
    repaired = sum(len(entry["repaired"]) for _, entry in entries)
    unresolved = sum(len(question.unresolved) for c in conversations for question in c.questions)
    return Dataset(
        conversations=conversations,
        path=place,
        sha256=digest_of([digest for *_, digest in raw]),
        benchmark="realtalk",
        categories=CATEGORIES,
        splits=SeededSplits([conversation.id for conversation in conversations]),
        notice=f"{repaired} evidence strings that name no message are repaired, {unresolved} are unresolved. {LICENCE}",
        licence=LICENCE,
        source=SOURCE,
    )


def _number(path: Path) -> tuple[int, str]:
    found = re.search(r"\d+", path.name)
    return int(found[0]) if found else 0, path.name


def _question(question: OwnQuestion, extra: Mapping[str, Any]) -> Question:
    values = {field.name: getattr(question, field.name) for field in fields(question)}
    return Question(**{**values, "unresolved": tuple(extra["unresolved"])})


def _entry(file: Path, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Convert one chat to the documented shape of own conversations."""
    numbers = sorted(int(match[1]) for key in raw if (match := re.fullmatch(r"session_(\d+)", key)))
    messages = [(str(number), message) for number in numbers for message in raw[f"session_{number}"]]
    evidence = Evidence([message for _, message in messages])
    turns = [
        {
            "id": message["dia_id"],
            "speaker": message["speaker"],
            "text": message["clean_text"],
            "time": message["date_time"],
            "session": session,
            **({"caption": message["blip_caption"]} if message.get("blip_caption") else {}),
        }
        for session, message in messages
    ]
    questions = []
    for item in raw["qa"]:
        ids, unresolved = evidence.resolve(texts(item["evidence"]))
        questions.append(
            {
                "text": item["question"],
                "answer": item["answer"],
                "category": str(item["category"]),
                "evidence": ids,
                "unresolved": unresolved,
            }
        )
    number, _ = _number(file)
    return {
        "id": f"realtalk-{number}" if number else file.stem,
        "speakers": list(dict.fromkeys(turn["speaker"] for turn in turns)),
        "turns": turns,
        "questions": questions,
        "repaired": evidence.repaired,
    }


class Evidence:
    """Resolves evidence strings to ids of messages.

    Args:
        messages: The messages of a chat in time order, as published.
    """

    def __init__(self, messages: Sequence[Mapping[str, Any]]) -> None:
        self._ids: dict[Key, str] = {}
        self._pictures: set[Key] = set()
        for message in messages:
            match = _ID.fullmatch(message["dia_id"])
            if match is None:
                raise ValueError(f"the message id {message['dia_id']!r}")
            key = int(match[1]), int(match[2])
            self._ids[key] = message["dia_id"]
            if message.get("img_file") or message.get("blip_caption"):
                self._pictures.add(key)
        self._order = sorted(self._ids)
        self.repaired: list[str] = []

    def resolve(self, strings: Sequence[str]) -> tuple[list[str], list[str]]:
        """The messages that some strings mean, each once, and the strings that mean none."""
        known = set(self._ids.values())
        found: dict[str, None] = {}
        unresolved = []
        for string in strings:
            if string in known:
                found[string] = None
                continue
            keys = self._keys(string)
            ids = [id for key in keys if (id := self._message(key))]
            found.update(dict.fromkeys(ids))
            if ids:
                self.repaired.append(string)
            if not keys or any(self._message(key) is None for key in keys):
                unresolved.append(string)
        return list(found), unresolved

    def _keys(self, string: str) -> list[Key]:
        keys: list[Key] = []
        for match in _RANGE.finditer(string):
            day, first = int(match[1]), int(match[2])
            last = int(match[4] or match[5])
            if match[3] is None or int(match[3]) == day:
                keys += [key for key in self._order if key[0] == day and first <= key[1] <= last]
        rest = _RANGE.sub(" ", string)
        return keys + [(int(match[1]), int(match[2])) for match in _ID.finditer(rest)]

    def _message(self, key: Key) -> str | None:
        """The message of an id, or the neighbour that carries its picture: the one before, else the one after."""
        if key in self._ids:
            return self._ids[key]
        before = [other for other in self._order if other[0] == key[0] and other < key][-1:]
        after = [other for other in self._order if other[0] == key[0] and other > key][:1]
        carrier = next((other for other in before + after if other in self._pictures), None)
        return self._ids[carrier] if carrier else None


def verify(data: Dataset) -> tuple[list[str], bool]:
    """Count what the files contain, and list unresolved evidence and names that no speaker has."""
    speakers = {name.lower() for c in data.conversations for name in c.speakers}
    turns = sum(len(c.turns) for c in data.conversations)
    unresolved = [f"{q.id} {string}" for q in data.questions for string in q.unresolved]
    return [
        f"{len(data.conversations)} chats, {turns:,} messages, {len(data.questions):,} questions, "
        f"{len(speakers)} names of speakers",
        data.notice,
        f"unresolved: {', '.join(unresolved) or 'none'}",
    ], True
