# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "llama-index-core==0.14.25", "llama-index-embeddings-huggingface==0.8.0", "sentence-transformers==6.2.0",
#     "torch==2.13.0",
# ]
# ///
"""LlamaIndex: a VectorStoreIndex with one node for each turn."""

from __future__ import annotations

from datetime import datetime
from importlib.metadata import version
from typing import Any


class LlamaIndexVectors:
    """One index for each scope.

    Args:
        encoder: A sentence-transformers model, by name or folder.
    """

    def __init__(self, encoder: str = "sentence-transformers/all-MiniLM-L6-v2") -> None:
        from llama_index.embeddings.huggingface import HuggingFaceEmbedding

        self.encoder = encoder
        self.model = HuggingFaceEmbedding(model_name=encoder, device="cpu")
        self.indexes: dict[str, Any] = {}

    def open(self, scope: str) -> None:
        from llama_index.core import VectorStoreIndex

        self.indexes[scope] = VectorStoreIndex(nodes=[], embed_model=self.model)

    def add(self, scope: str, turns: list[dict[str, Any]]) -> None:
        from llama_index.core.schema import TextNode

        self.indexes[scope].insert_nodes([TextNode(id_=turn["id"], text=dated(turn)) for turn in turns])

    def ready(self, scope: str) -> None:
        pass

    def search(self, scope: str, question: str, limit: int, at: str) -> list[dict[str, Any]]:
        found = self.indexes[scope].as_retriever(similarity_top_k=limit).retrieve(question)
        return [{"text": one.node.get_content(), "turn_ids": [one.node.node_id], "score": one.score} for one in found]

    def forget(self, scope: str, ids: list[str]) -> None:
        self.indexes[scope].delete_nodes(ids)

    def close(self, scope: str) -> None:
        del self.indexes[scope]

    def describe(self) -> dict[str, Any]:
        packages = ("llama-index-core", "llama-index-embeddings-huggingface", "sentence-transformers")
        return {
            "name": "LlamaIndex vectors",
            "versions": {name: version(name) for name in packages},
            "parameters": {"encoder": self.encoder},
            "degraded": [],
        }


def dated(turn: dict[str, Any]) -> str:
    """The turn with its date and its speaker."""
    day = datetime.fromisoformat(turn["said_at"])
    return f"# {day:%a} {day.day} {day:%B %Y}\n{turn['speaker']}: {turn['text']}"
