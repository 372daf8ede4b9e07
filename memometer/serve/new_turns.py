"""New turns: their defaults and checks."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from memometer.memory import Turn
from memometer.serve.registry import AlreadyExists, InvalidRequest
from memometer.store import turn_conversion
from memometer.store.episode import Episode

MAX_TURN_BYTES = 2**20
"""UTF-8 bytes of a turn."""


@dataclass(frozen=True)
class NewTurn:
    """A turn to store. Missing fields get defaults: the current time, a session per day, a random id."""

    text: str
    speaker: str = "user"
    said_at: datetime | None = None
    session: int | None = None
    caption: str | None = None
    id: str | None = None
    metadata: Mapping[str, str | int | float] = field(default_factory=dict)


def complete(new: NewTurn, id: str, known: Episode | None, *, now: datetime) -> Turn:
    """Complete a new turn, and check it against the stored turn with the same id.

    Args:
        new: the turn.
        id: its id.
        known: the stored turn with this id; None if there is none.
        now: the time of a turn without one.

    Raises:
        InvalidRequest: the time or the text is not valid.
        AlreadyExists: the stored turn is another one.
    """
    said_at = new.said_at or (turn_conversion.turn_of(known).said_at if known else now)
    if not 1 < said_at.year < 9999:
        raise InvalidRequest(f"said_at is in the year {said_at.year}; expected a year from 2 to 9998.")
    session = said_at.toordinal() if new.session is None else new.session
    turn = Turn(id, new.speaker, new.text, session, said_at, new.caption)
    try:
        size = len(turn.line.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequest("text contains an unpaired surrogate; send valid UTF-8.") from error
    if size > MAX_TURN_BYTES:
        raise InvalidRequest(f"a turn has {size:,} bytes; the limit is {MAX_TURN_BYTES:,}.")
    at = None if new.said_at is None else turn_conversion.at_of(turn)
    if known and (known.text != turn.line.rstrip("\n") or at not in (None, known.at)):
        raise AlreadyExists(f"id {id!r} or its idempotency key belongs to another turn; use a new one.")
    return turn


def said(episode: Episode) -> tuple[str, datetime, int, str | None]:
    """Return the speaker, time, session and caption of a stored turn."""
    turn = turn_conversion.turn_of(episode)
    return turn.speaker, turn.said_at.replace(tzinfo=turn.said_at.tzinfo or UTC), turn.session, turn.caption


def zone_named(name: str) -> ZoneInfo:
    """Return a time zone. Raises InvalidRequest if there is none of this name."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InvalidRequest(f"unknown time zone {name!r}; use a name such as Europe/Berlin or UTC.") from error


def new_id(tenant: str, key: str | None, index: int) -> str:
    """Return the id of a turn without one: random, or derived from an idempotency key and its place."""
    if key is None:
        return uuid.uuid4().hex[:16]
    digest = hashlib.sha256(f"{tenant}\0{key}".encode()).hexdigest()
    return f"{digest[:24]}.{index}"
