# /// script
# requires-python = ">=3.11"
# dependencies = ["haystack-ai==3.4.1", "sentence-transformers==6.2.0", "torch==2.13.0"]
# ///
"""Haystack: BM25 and MiniLM over an in-memory store, joined by reciprocal rank fusion."""

from __future__ import annotations

import os
from datetime import datetime
from importlib.metadata import version
from typing import Any

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read when haystack is imported


class HaystackHybrid:
    """One document store for each scope.

    Args:
        encoder: A sentence-transformers model, by name or folder.
    """

    def __init__(self, encoder: str = "sentence-transformers/all-MiniLM-L6-v2") -> None:
        from sentence_transformers import SentenceTransformer

        self.encoder = encoder
        self.model = SentenceTransformer(encoder, device="cpu")
        self.stores: dict[str, Any] = {}

    def open(self, scope: str) -> None:
        from haystack.document_stores.in_memory import InMemoryDocumentStore

        self.stores[scope] = InMemoryDocumentStore(embedding_similarity_function="cosine")

    def add(self, scope: str, turns: list[dict[str, Any]]) -> None:
        from haystack import Document

        texts = [dated(turn) for turn in turns]
        vectors = self.model.encode(texts, normalize_embeddings=True).tolist()
        self.stores[scope].write_documents(
            [
                Document(id=turn["id"], content=text, embedding=vector)
                for turn, text, vector in zip(turns, texts, vectors, strict=True)
            ]
        )

    def ready(self, scope: str) -> None:
        pass

    def search(self, scope: str, question: str, limit: int, at: str) -> list[dict[str, Any]]:
        from haystack.components.joiners import DocumentJoiner
        from haystack.components.retrievers.in_memory import InMemoryBM25Retriever, InMemoryEmbeddingRetriever

        store = self.stores[scope]
        words = InMemoryBM25Retriever(store, top_k=limit).run(query=question)["documents"]
        vector = self.model.encode([question], normalize_embeddings=True)[0].tolist()
        meaning = InMemoryEmbeddingRetriever(store, top_k=limit).run(query_embedding=vector)["documents"]
        joiner = DocumentJoiner(join_mode="reciprocal_rank_fusion", top_k=limit)
        found = joiner.run(documents=[words, meaning])["documents"]
        return [{"text": one.content, "turn_ids": [one.id], "score": one.score} for one in found]

    def forget(self, scope: str, ids: list[str]) -> None:
        self.stores[scope].delete_documents(ids)

    def close(self, scope: str) -> None:
        del self.stores[scope]

    def describe(self) -> dict[str, Any]:
        return {
            "name": "Haystack hybrid",
            "versions": {name: version(name) for name in ("haystack-ai", "sentence-transformers")},
            "parameters": {"encoder": self.encoder, "join_mode": "reciprocal_rank_fusion"},
            "degraded": [],
        }


def dated(turn: dict[str, Any]) -> str:
    """The turn with its date and its speaker."""
    day = datetime.fromisoformat(turn["said_at"])
    return f"# {day:%a} {day.day} {day:%B %Y}\n{turn['speaker']}: {turn['text']}"
