"""Times of turns: ISO 8601, and the formats of LOCOMO and of chat exports."""

from __future__ import annotations

from datetime import UTC, datetime

_FORMATS = ("%I:%M %p on %d %B, %Y", "%d.%m.%Y, %H:%M:%S")
"""LOCOMO's, and that of the files of real chats in its shape."""


def parse_time(text: str) -> datetime | None:
    """Parse a time; None if it is none or its year is out of range. A zone is kept, so the date is the local day."""
    found: datetime | None = None
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        for form in _FORMATS:
            try:
                found = datetime.strptime(text.strip(), form)
                break
            except ValueError:
                continue
    return found if found and 1 < found.year < 9999 else None


def instant(time: datetime) -> datetime:
    """The time in UTC; a time without a zone counts as UTC."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
