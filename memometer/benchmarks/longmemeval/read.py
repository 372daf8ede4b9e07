"""Reading of LongMemEval's published files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

from memometer.benchmarks import json_files
from memometer.benchmarks.longmemeval.question import LICENCE, TYPES, Question
from memometer.benchmarks.own.question import Question as OwnQuestion
from memometer.benchmarks.own.read import conversations_of
from memometer.benchmarks.protocol import DataError, Dataset
from memometer.benchmarks.splits import SeededSplits
from memometer.benchmarks.user_files import in_shape, locate, texts

VARIABLE = "LONGMEMEVAL_PATH"
SOURCE = "https://huggingface.co/datasets/xiaowu0162/longmemeval-cleaned"
MAX_BYTES = 8 << 30
"""Limit for a file; the longest, M, has 2.7 GB."""
ABSTENTION = "_abs"
"""End of the id of an unanswerable question."""
SPEAKERS = {"user": "User", "assistant": "Assistant"}


def load(path: str | Path | None) -> Dataset:
    """Load one of the published files. Items are read one by one.

    Raises:
        DataError: The file is missing or has another shape.
    """
    place = locate(path, title="LongMemEval", variable=VARIABLE, source=SOURCE)
    if place.is_dir():
        found = sorted(place.glob("longmemeval_*.json"))
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise DataError(f"{place} is a folder with these files of LongMemEval: {names}; name one file.")
        place = found[0]
    conversations = tuple(conversations_of(_entries(place), _question))
    if not conversations:
        raise DataError(f"{place} has no questions.")
    present = {question.category for c in conversations for question in c.questions}
    return Dataset(
        conversations=conversations,
        path=place,
        sha256=json_files.file_sha256(place),
        benchmark="longmemeval",
        categories={name: name for name in TYPES if name in present},
        splits=SeededSplits([conversation.id for conversation in conversations]),
        notice=LICENCE,
        licence=LICENCE,
        source=SOURCE,
    )


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the items in the shape of own conversations.

    The histories share most of their sessions, so equal texts are kept once: memory grows with the number of different
    sessions, and only slightly with the number of items.
    """
    pool: dict[str, str] = {}
    for n, item in json_files.items(path, max_bytes=MAX_BYTES):
        where = f"{path}, item {n}"
        entry = in_shape(lambda item=item: _entry(item), path=Path(where), title="LongMemEval")  # type: ignore[misc]
        for turn in entry["turns"]:
            for name in ("id", "text", "session"):
                turn[name] = pool.setdefault(turn[name], turn[name])
        yield where, entry


def _entry(item: Mapping[str, Any]) -> dict[str, Any]:
    """Convert one item to the documented shape of own conversations; its sessions are put into time order."""
    if item["question_type"] not in TYPES:
        raise ValueError(f"question_type {item['question_type']!r}")
    if not isinstance(item["question_id"], str):
        raise TypeError("question_id is not text")
    columns = (item["haystack_session_ids"], item["haystack_dates"], item["haystack_sessions"])
    sessions = [(id, _time(date), messages) for id, date, messages in zip(*columns, strict=True)]
    sessions.sort(key=lambda session: session[1])
    names: Counter[str] = Counter()
    turns: list[dict[str, Any]] = []
    evidence: list[str] = []
    for id, time, messages in sessions:
        names[id] += 1
        name = id if names[id] == 1 else f"{id} ({names[id]})"  # a history may repeat a session
        for n, message in enumerate(messages):
            if not message["content"].strip():
                continue  # a few published messages are empty
            turns.append(
                {
                    "id": f"{name}:{n}",
                    "speaker": SPEAKERS[message["role"]],
                    "role": message["role"],
                    "text": message["content"],
                    "time": time.isoformat(),
                    "session": name,
                }
            )
            if message.get("has_answer"):
                evidence.append(turns[-1]["id"])
    unanswerable = item["question_id"].endswith(ABSTENTION)
    question = {
        "id": item["question_id"],
        "text": item["question"],
        "category": item["question_type"],
        "evidence": [] if unanswerable else evidence,
        "asked_on": item["question_date"],
        "answer_sessions": texts(item["answer_session_ids"]),
        **({"unanswerable": True} if unanswerable else {"answer": item["answer"]}),
    }
    return {"id": item["question_id"], "speakers": list(SPEAKERS.values()), "turns": turns, "questions": [question]}


def _time(text: str) -> datetime:
    """Parse a published time, such as `2023/05/20 (Sat) 02:21`."""
    return datetime.strptime(re.sub(r"\s*\(\w+\)\s*", " ", text).strip(), "%Y/%m/%d %H:%M")


def _question(question: OwnQuestion, extra: Mapping[str, Any]) -> Question:
    values = {field.name: getattr(question, field.name) for field in fields(question)}
    return Question(**values, asked_on=str(extra["asked_on"]), answer_sessions=tuple(extra["answer_sessions"]))
