"""Conversations, turns and times of published files, with what they lack filled in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from memometer.benchmarks.checkpoints.question import Question
from memometer.benchmarks.protocol import Conversation, Dataset, Session
from memometer.benchmarks.user_files import digest_of
from memometer.memory import Turn

START = datetime(2020, 1, 1)


def text_of(value: Any, *names: str) -> str:
    """Return the first of some fields that holds a text, or the value itself if it is one; empty if none does."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return next((found for name in names if isinstance(found := value.get(name), str) and found), "")
    return "" if value is None else str(value)


def texts_of(value: Any) -> tuple[str, ...]:
    """Return the texts of a list, of a single text, or of objects with a text, each once."""
    items: Iterable[Any] = value if isinstance(value, list) else [] if value is None else [value]
    found: list[str] = []
    for item in items:
        nested = item if isinstance(item, list) else [item]
        options = [text for each in nested if (text := text_of(each, "text", "value", "target", "pattern", "content"))]
        if len(options) > 1:  # one of several wordings
            found.append("(?:" + "|".join(re.escape(option) for option in options) + ")")
        else:
            found += options
    return tuple(dict.fromkeys(found))


def time_of(value: Any, before: datetime) -> datetime:
    """Return a published time; if there is none or it cannot be read, the time before."""
    try:
        return datetime.fromisoformat(str(value).replace("Z", "+00:00")).replace(tzinfo=None)
    except ValueError:
        return before


def conversation(id: str, turns: Sequence[Turn], questions: Sequence[Question], **more: Any) -> Conversation:
    """Build a conversation from its turns, which may have any session numbers in increasing order."""
    found = [(number, tuple(of)) for number, of in groupby(turns, key=lambda turn: turn.session)]
    sessions = tuple(Session(number, of[0].said_at, of) for number, of in found)
    return Conversation(id, tuple(dict.fromkeys(turn.speaker for turn in turns)), sessions, tuple(questions), **more)


def dataset(
    name: str, path: Path, digests: Sequence[str], conversations: Sequence[Conversation], categories: Mapping[str, str],
    *, notice: str, source: str,
) -> Dataset:  # fmt: skip
    """Build the data; all conversations are test conversations."""
    return Dataset(
        conversations=tuple(conversations),
        path=path,
        sha256=digest_of(digests),
        benchmark=name,
        categories=categories,
        splits={"default": {"train": (), "validation": (), "test": tuple(c.id for c in conversations)}},
        notice=notice,
        licence=notice,
        source=source,
    )
