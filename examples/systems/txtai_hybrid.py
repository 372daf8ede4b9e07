# /// script
# requires-python = ">=3.11"
# dependencies = ["txtai==9.14.0", "sentence-transformers==6.2.0", "torch==2.13.0"]
# ///
"""txtai: a hybrid index of BM25 and MiniLM."""

from __future__ import annotations

from datetime import datetime
from importlib.metadata import version
from typing import Any


class TxtaiHybrid:
    """One index for each scope. It is built when the scope is complete, because txtai builds a sparse index at once.

    Args:
        encoder: A transformers model, by name or folder.
    """

    def __init__(self, encoder: str = "sentence-transformers/all-MiniLM-L6-v2") -> None:
        self.encoder = encoder
        self.indexes: dict[str, Any] = {}
        self.texts: dict[str, list[tuple[str, str]]] = {}

    def open(self, scope: str) -> None:
        self.texts[scope] = []

    def add(self, scope: str, turns: list[dict[str, Any]]) -> None:
        self.texts[scope] += [(turn["id"], dated(turn)) for turn in turns]

    def ready(self, scope: str) -> None:
        from txtai import Embeddings

        index = Embeddings(path=self.encoder, hybrid=True, method="sentence-transformers")
        index.index(self.texts[scope])
        self.indexes[scope] = index

    def search(self, scope: str, question: str, limit: int, at: str) -> list[dict[str, Any]]:
        texts = dict(self.texts[scope])
        found = self.indexes[scope].search(question, limit)
        return [{"text": texts[id], "turn_ids": [id], "score": score} for id, score in found]

    def close(self, scope: str) -> None:
        self.indexes.pop(scope).close()
        del self.texts[scope]

    def describe(self) -> dict[str, Any]:
        return {
            "name": "txtai hybrid",
            "versions": {"txtai": version("txtai")},
            "parameters": {"encoder": self.encoder, "hybrid": True},
            "degraded": [],
        }


def dated(turn: dict[str, Any]) -> str:
    """The turn with its date and its speaker."""
    day = datetime.fromisoformat(turn["said_at"])
    return f"# {day:%a} {day.day} {day:%B %Y}\n{turn['speaker']}: {turn['text']}"
