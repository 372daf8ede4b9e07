"""The messages of a transcript, whatever its format."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    Attributes:
        text: The words.
        speaker: The name of who wrote it.
        said_at: Its time: with a zone if the format has one, otherwise the writer's local time; None if unknown.
        caption: A description of its picture.
        id: Its id in the transcript; empty if the format has none.
    """

    text: str
    speaker: str
    said_at: datetime | None = None
    caption: str | None = None
    id: str = ""


@dataclass
class Transcript:
    """The messages of a file in time order.

    Attributes:
        format: The name of the format.
        messages: The messages.
        left_out: Kind of content that is not a message -> how often it occurred.
        notices: Sentences about guesses.
    """

    format: str
    messages: list[Message] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    notices: list[str] = field(default_factory=list)

    def ids(self) -> list[str]:
        """An id for each message, which a later export of the same conversation gives it again."""
        return _ids(self.messages)


def _ids(messages: Sequence[Message]) -> list[str]:
    seen: Counter[str] = Counter()
    found = []
    for message in messages:
        content = message.id or f"{message.said_at}\n{message.speaker}\n{message.text}"
        seen[content] += 1
        found.append(hashlib.sha256(f"{content}\n{seen[content]}".encode()).hexdigest()[:24])
    return found
