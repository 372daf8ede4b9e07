"""Turns as episodes of a store, and back: what a memory that keeps them there has to say the same way each time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from memory_system import Turn
from stores.episode import Episode


def at_of(turn: Turn) -> float:
    """When a turn was said, in Unix seconds; a time without a zone is in UTC."""
    return turn.said_at.replace(tzinfo=turn.said_at.tzinfo or UTC).timestamp()


def episodes_of(turns: Sequence[Turn], first: int) -> list[Episode]:
    """Turns as episodes, numbered in the order of observing."""
    return [
        Episode(turn.id, turn.line.rstrip("\n"), at_of(turn), details={"n": first + n, "session": turn.session})
        for n, turn in enumerate(turns)
    ]


def turn_of(episode: Episode) -> Turn:
    """The turn of an episode, with the same line under the same date; a caption is part of its text."""
    speaker, text = parted(episode.text)
    session = int(episode.details.get("session", 0))
    return Turn(episode.id, speaker, text, session, datetime.fromtimestamp(episode.at, UTC))


def parted(line: str) -> tuple[str, str]:
    """The speaker of a line, empty where it names none, and what was said."""
    speaker, colon, text = line.partition(": ")
    if colon:
        return speaker, text
    return (line[:-1], "") if line.endswith(":") else ("", line)
