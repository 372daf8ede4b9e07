"""What SQLite keeps of an episode beside numbers: its text and details as bytes, and its terms as index entries."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from stores.episode import Episode


def payload_of(episode: Episode) -> bytes:
    details = json.dumps(dict(episode.details), ensure_ascii=False, separators=(",", ":")) if episode.details else ""
    return f"{episode.text}\0{details}".encode()


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
