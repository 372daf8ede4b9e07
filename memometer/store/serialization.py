"""An episode as SQLite's rows hold it: its text and details as bytes, its terms as index entries."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from memometer.store.episode import Episode

USUAL_IMPORTANCE = 0.5
"""Written as NULL."""


def payload_of(episode: Episode) -> bytes:
    details = json.dumps(dict(episode.details), ensure_ascii=False, separators=(",", ":")) if episode.details else ""
    return f"{episode.text}\0{details}".encode()


def episode_of(fields: Sequence[Any], payload: bytes) -> Episode:
    """An episode of the values of its row: those that `without_text` takes, whether it is archived, and its sources."""
    *numbers, archived, sources = fields
    text, details = split(payload)
    listed = tuple(json.loads(sources)) if sources else ()
    return replace(without_text(*numbers), text=text, sources=listed, archived=bool(archived), details=details)


def without_text(id: str, at: float, importance: float | None, uses: int, codes: bytes | None) -> Episode:
    """The part of an episode that ranking needs."""
    return Episode(id, "", at, USUAL_IMPORTANCE if importance is None else importance, uses, codes or b"")


def split(payload: bytes) -> tuple[str, dict[str, Any]]:
    text, _, details = payload.decode().rpartition("\0")  # JSON holds no NUL
    return text, json.loads(details) if details else {}


def text_of(payload: bytes) -> str:
    return split(payload)[0]


def entries(scope: int, words: Iterable[str]) -> str:
    """The index entries of a text's terms: each once, and again with its number for each time that it is repeated."""
    seen: Counter[str] = Counter()
    found = []
    for word in words:
        seen[word] += 1
        found.append(f"{scope}_{word}" if seen[word] == 1 else f"{scope}_{word}~{seen[word]}")
    return " ".join(found)
