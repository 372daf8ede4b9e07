"""Conversion of an episode to and from the columns of a SQLite row."""

from __future__ import annotations

import json
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
