"""Reading of BEAM's published folders."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

from memometer.benchmarks import json_files
from memometer.benchmarks.beam.question import ABILITIES, CATEGORIES, LICENCE, Question
from memometer.benchmarks.own.question import Question as OwnQuestion
from memometer.benchmarks.own.read import conversations_of
from memometer.benchmarks.protocol import DataError, Dataset
from memometer.benchmarks.splits import SeededSplits
from memometer.benchmarks.user_files import digest_of, in_shape, locate, texts

VARIABLE = "BEAM_PATH"
SOURCE = "https://github.com/mohammadtavakoli78/BEAM (a folder of chats, such as chats/100K)"
CHATS = ("chat_trunecated.json", "chat.json")
"""The published evaluation reads the first of these that a chat has. The spelling is the published one."""
QUESTIONS = ("probing_questions/probing_questions.json", "probing_questions.json")
ANSWERS = ("answer", "ideal_answer", "ideal_response", "ideal_summary", "expected_compliance")
"""Fields that hold the gold answer, by ability."""
_MARK = re.compile(r"\s*->->\s*[\d,\s]+$")
"""The position in the plan of the chat, which ends many published messages and is not part of them."""


def load(path: str | Path | None) -> Dataset:
    """Load the chats of a folder, or one of its chats.

    Raises:
        DataError: The files are missing or have another shape.
    """
    place = locate(path, title="BEAM", variable=VARIABLE, source=SOURCE)
    folders = _chats(place)
    digests: list[str] = []
    entries = ((str(folder), _read(folder, digests)) for folder in folders)
    conversations = tuple(conversations_of(entries, _question))
    return Dataset(
        conversations=conversations,
        path=place,
        sha256=digest_of(digests),
        benchmark="beam",
        categories=CATEGORIES,
        splits=SeededSplits([conversation.id for conversation in conversations]),
        notice=LICENCE,
        licence=LICENCE,
        source=SOURCE,
    )


def _chats(place: Path) -> list[Path]:
    if _first(place, CHATS):
        return [place]
    if not place.is_dir():
        raise DataError(f"{place} is not a folder; BEAM needs {SOURCE}.")
    found = [folder for folder in place.iterdir() if folder.is_dir() and _first(folder, CHATS)]
    if not found:
        raise DataError(f"{place} has no folder with a chat.json; name {SOURCE}.")
    return sorted(found, key=lambda folder: (not folder.name.isdecimal(), folder.name.zfill(9)))


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _read(folder: Path, digests: list[str]) -> dict[str, Any]:
    chat, questions = _first(folder, CHATS), _first(folder, QUESTIONS)
    if chat is None or questions is None:
        raise DataError(f"{folder} has no probing_questions.json.")
    raw, chat_digest = json_files.read_json(chat)
    probing, question_digest = json_files.read_json(questions)
    digests += [chat_digest, question_digest]
    return {
        "id": f"beam-{folder.name}",
        "speakers": ["User", "Assistant"],
        "turns": in_shape(lambda: list(_turns(raw)), path=chat, title="BEAM"),
        "questions": in_shape(lambda: list(_questions(probing)), path=questions, title="BEAM"),
    }


def _batches(raw: Any) -> Iterator[Mapping[str, Any]]:
    """The batches of a chat; those of 10M tokens are grouped by plan."""
    for entry in raw:
        if "turns" in entry:
            yield entry
        else:
            for plan in entry.values():
                yield from _batches(plan)


def _turns(raw: Any) -> Iterator[dict[str, Any]]:
    time: datetime | None = None
    for session, batch in enumerate(_batches(raw), start=1):
        for message in (message for turn in batch["turns"] for message in turn):
            if anchor := message.get("time_anchor"):
                read = datetime.strptime(anchor, "%B-%d-%Y")
                time = max(time, read) if time else read  # an anchor that runs back would break the order of time
            yield {
                "id": str(message["id"]),
                "speaker": {"user": "User", "assistant": "Assistant"}[message["role"]],
                "role": message["role"],
                "text": _MARK.sub("", message["content"]),
                "session": str(session),
                "time": time.isoformat() if time else None,
            }


def _questions(probing: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for ability in ABILITIES:
        for item in probing.get(ability, []):
            gold = next((str(item[name]) for name in ANSWERS if item.get(name)), "; ".join(texts(item["rubric"])))
            yield {
                "text": item["question"],
                "category": ability,
                "evidence": list(dict.fromkeys(_ids(item.get("source_chat_ids")))),
                "rubric": texts(item["rubric"]),
                **({"unanswerable": True} if ability == "abstention" else {"answer": gold}),
            }


def _ids(value: Any) -> list[str]:
    """The message ids in `source_chat_ids`: a number, a list, or an object of lists."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        return [id for item in value for id in _ids(item)]
    return [] if value is None else [str(value)]


def _question(question: OwnQuestion, extra: Mapping[str, Any]) -> Question:
    values = {field.name: getattr(question, field.name) for field in fields(question)}
    return Question(**values, rubric=tuple(extra["rubric"]))
