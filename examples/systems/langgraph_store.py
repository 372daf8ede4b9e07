# /// script
# requires-python = ">=3.11"
# dependencies = ["langgraph==1.2.24", "langgraph-checkpoint==4.3.2", "sentence-transformers==6.2.0", "torch==2.13.0"]
# ///
"""LangGraph's InMemoryStore with a MiniLM index: one stored value for each turn."""

from __future__ import annotations

from datetime import datetime
from importlib.metadata import version
from typing import Any


class LangGraphStore:
    """Each scope is a namespace; the vector of a value covers its whole text.

    Args:
        encoder: A sentence-transformers model, by name or folder.
    """

    def __init__(self, encoder: str = "sentence-transformers/all-MiniLM-L6-v2") -> None:
        from langgraph.store.memory import InMemoryStore
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(encoder, device="cpu")
        embed = lambda texts: model.encode(texts, normalize_embeddings=True).tolist()  # noqa: E731
        self.encoder = encoder
        self.store = InMemoryStore(index={"dims": 384, "embed": embed, "fields": ["text"]})

    def open(self, scope: str) -> None:
        pass

    def add(self, scope: str, turns: list[dict[str, Any]]) -> None:
        from langgraph.store.base import PutOp

        self.store.batch([PutOp((scope,), turn["id"], {"text": dated(turn)}) for turn in turns])

    def ready(self, scope: str) -> None:
        pass

    def search(self, scope: str, question: str, limit: int, at: str) -> list[dict[str, Any]]:
        found = self.store.search((scope,), query=question, limit=limit)
        return [{"text": item.value["text"], "turn_ids": [item.key], "score": item.score} for item in found]

    def forget(self, scope: str, ids: list[str]) -> None:
        for id in ids:
            self.store.delete((scope,), id)

    def close(self, scope: str) -> None:
        for item in self.store.search((scope,), limit=100_000):
            self.store.delete((scope,), item.key)

    def describe(self) -> dict[str, Any]:
        packages = ("langgraph", "langgraph-checkpoint", "sentence-transformers")
        return {
            "name": "LangGraph InMemoryStore",
            "versions": {name: version(name) for name in packages},
            "parameters": {"encoder": self.encoder},
            "degraded": [],
        }


def dated(turn: dict[str, Any]) -> str:
    """The turn with its date and its speaker, as most users would store it."""
    day = datetime.fromisoformat(turn["said_at"])
    return f"# {day:%a} {day.day} {day:%B %Y}\n{turn['speaker']}: {turn['text']}"
