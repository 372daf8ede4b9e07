"""Reading of a transcript whose format is recognized by its content."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from memometer.benchmarks import json_files
from memometer.benchmarks.protocol import DataError
from memometer.transcripts import plain_text, slack, whatsapp
from memometer.transcripts.message import Message, Transcript

SPEAKER = ("speaker", "name", "author", "from", "sender", "username", "role", "user")
TEXT = ("text", "content", "message", "body")
TIME = ("time", "timestamp", "said_at", "date", "created_at", "ts")
"""Names of fields in lists of messages, the first that is there."""


EARLIEST = datetime.min.replace(tzinfo=UTC)


def read_transcript(path: Path, *, speaker: str = "user", order: str | None = None) -> Transcript:
    """Read a transcript.

    Args:
        path: Own conversations or messages in JSON or JSON Lines, a WhatsApp export (text or zip), a Slack export (zip
            or folder), or plain text.
        speaker: The name for lines of plain text without one.
        order: The order of dates in a WhatsApp export; None finds it.

    Returns:
        The messages in time order. Messages without a time stay where they are.

    Raises:
        DataError: The file cannot be read, or has no message.
    """
    path = path.expanduser()
    if path.is_dir():
        found = slack.read(path)
    else:
        content = json_files.read_bytes(path)
        if content.startswith(b"PK\x03\x04"):
            chat = _chat_in_zip(path)
            found = slack.read(path) if chat is None else whatsapp.read(chat, str(path), order=order)
        else:
            text = json_files.text_of(content, path)
            if path.suffix.lower() in json_files.SUFFIXES:
                found = _json(path, content)
            elif whatsapp.is_whatsapp(text.splitlines()[:200]):
                found = whatsapp.read(text, str(path), order=order)
            else:
                found = plain_text.read(text, speaker=speaker)
    if not found.messages:
        left = ", ".join(f"{n} {kind}" for kind, n in found.left_out.items())
        raise DataError(f"{path} has no message to store{f' ({left})' if left else ''}.")
    for n, message in enumerate(found.messages):
        try:
            f"{message.speaker}{message.text}{message.caption or ''}".encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{path}, message {n}: it contains half a character (an unpaired surrogate).") from error
    return found


def _chat_in_zip(path: Path) -> str | None:
    """The text of a WhatsApp export in a zip file; None if it has no text file."""
    try:
        with zipfile.ZipFile(path) as archive:
            chats = [info for info in archive.infolist() if info.filename.endswith(".txt")]
            if len(chats) != 1 or any(info.filename.endswith("users.json") for info in archive.infolist()):
                return None
            if chats[0].file_size > json_files.MAX_BYTES:
                raise DataError(f"{path}: {chats[0].filename} is larger than {json_files.MAX_BYTES:,} bytes.")
            with archive.open(chats[0]) as file:
                content = file.read(json_files.MAX_BYTES)
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError) as error:
        raise DataError(f"{path} is not a readable zip file ({error}).") from error
    return json_files.text_of(content, path)


def _json(path: Path, content: bytes) -> Transcript:
    values = list(json_files.values(path, content))
    items: list[Any] = [item for _, value in values for item in (value if isinstance(value, list) else [value])]
    if len(items) == 1 and isinstance(items[0], Mapping) and isinstance(items[0].get("messages"), list):
        items = items[0]["messages"]
    if all(isinstance(item, Mapping) and not _is_conversation(item) for item in items):
        return _messages(path, items)
    return _own(path)


def _is_conversation(item: Mapping[str, Any]) -> bool:
    return bool({"turns", "conversation", "conversations"} & set(item))


def _own(path: Path) -> Transcript:
    """Own conversations in the documented shape, or LOCOMO's; questions are left out."""
    from memometer.benchmarks.own.read import conversations_in
    from memometer.benchmarks.own.times import instant

    found = Transcript("own conversations")
    for conversation in conversations_in(path):
        for turn in conversation.turns:
            id = f"{conversation.id}/{turn.id}"
            found.messages.append(Message(turn.text, turn.speaker, turn.said_at, turn.caption, id))
        if conversation.questions:
            found.left_out["question"] += len(conversation.questions)
    found.messages.sort(key=lambda message: instant(message.said_at) if message.said_at else EARLIEST)
    return found


def _messages(path: Path, items: list[Any]) -> Transcript:
    """A list of messages with the usual names of fields."""
    from memometer.benchmarks.own.times import parse_time

    found = Transcript("JSON messages")
    for n, item in enumerate(items):
        where = f"{path}, message {n}"
        text, time = _first(item, TEXT), _first(item, TIME)
        if isinstance(text, list):  # parts of a message, of which the texts are read
            text = "\n".join(str(part["text"]) for part in text if isinstance(part, Mapping) and "text" in part)
        name = _first(item, SPEAKER)
        if not isinstance(text, str):
            raise DataError(f"{where}: {TEXT[0]} is missing or not text; expected one of {', '.join(TEXT)}.")
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{where}: {SPEAKER[0]} is missing or not text; expected one of {', '.join(SPEAKER)}.")
        said_at = parse_time(time) if isinstance(time, str) else None
        if time is not None and said_at is None:
            raise DataError(f"{where}: {str(time)[:60]!r} is not an ISO 8601 time, such as 2024-03-03T18:12:00.")
        if not text.strip():
            found.left_out["empty message"] += 1
            continue
        found.messages.append(Message(text, " ".join(name.split()), said_at, id=str(item.get("id") or "")))
    return found


def _first(item: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((item[name] for name in names if item.get(name) is not None), None)
