"""Plain text: one message per line, with or without names and times.

Ada: I planted a quince tree.
[2024-03-03 18:12] Bo: Where?
"""

from __future__ import annotations

import re
from datetime import datetime

from memometer.transcripts.message import Message, Transcript

_TIME = r"\[?(?P<time>\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?(?:Z|[+-]\d\d:?\d\d)?)?)\]?\s+(?:[-–]\s+)?"
_LINE = re.compile(rf"^(?:{_TIME})?(?:(?P<name>[^\s:][^:]{{0,39}}):\s+)?(?P<text>.*)$")
SHARE = 0.5
"""If more than this share of the lines begin with a name, the other lines belong to the message before."""


def read(text: str, *, speaker: str) -> Transcript:
    """Read a text.

    Args:
        text: The content of the file.
        speaker: The name for lines without one.
    """
    found = Transcript("plain text")
    matches = [match for line in text.splitlines() if line.strip() and (match := _LINE.match(line.strip()))]
    named = sum(bool(match["name"]) for match in matches) > SHARE * len(matches)
    for match in matches:
        time = _time(match["time"])
        rest = match["text"] if time or not match["time"] else match[0]
        if named and match["name"]:
            found.messages.append(Message(rest or "…", match["name"].strip(), time))
        elif named and found.messages and time is None:
            before = found.messages.pop()
            found.messages.append(Message(f"{before.text}\n{match[0]}", before.speaker, before.said_at))
        else:
            name = f"{match['name']}: " if match["name"] else ""
            found.messages.append(Message(f"{name}{rest}", speaker, time))
    return found


def _time(text: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
