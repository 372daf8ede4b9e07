"""Conversion of an episode to and from the columns of a SQLite row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from memometer.store.episode import Episode

DEFAULT_IMPORTANCE = 0.5
"""Stored as NULL."""


def to_payload(episode: Episode) -> bytes:
    """Encode text and details."""
    details = json.dumps(dict(episode.details), ensure_ascii=False, separators=(",", ":")) if episode.details else ""
    return f"{episode.text}\0{details}".encode()


def from_payload(payload: bytes) -> tuple[str, dict[str, Any]]:
    """Decode text and details."""
    text, _, details = payload.decode().rpartition("\0")  # JSON contains no NUL
    return text, json.loads(details) if details else {}


def to_episode(columns: Sequence[Any], payload: bytes) -> Episode:
    """Build an episode from the columns id, at, importance, uses, codes, archived and sources, and its payload."""
    *scores, archived, sources = columns
    text, details = from_payload(payload)
    sources = tuple(json.loads(sources)) if sources else ()
    return replace(without_text(*scores), text=text, sources=sources, archived=bool(archived), details=details)


def without_text(id: str, at: float, importance: float | None, uses: int, codes: bytes | None) -> Episode:
    """Build the part of an episode that ranking needs."""
    return Episode(id, "", at, DEFAULT_IMPORTANCE if importance is None else importance, uses, codes or b"")
