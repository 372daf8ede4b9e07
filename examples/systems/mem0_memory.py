# /// script
# requires-python = ">=3.11"
# dependencies = ["mem0ai==2.2.1", "sentence-transformers==6.2.0", "torch==2.13.0"]
# ///
"""mem0: raw turns (infer=false), or memories that a model extracts (infer=true).

With infer=true, mem0 asks the model of OPENAI_BASE_URL. mem0 does not report which messages a memory comes from, only
the call of `add`, so a memory names all turns of its batch.
"""

from __future__ import annotations

import os
from datetime import datetime
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

os.environ["MEM0_TELEMETRY"] = "False"  # read when mem0 is imported
os.environ.setdefault("OPENAI_API_KEY", "none")  # mem0 makes its client at construction, also if it never asks it


class Mem0:
    """One collection for each scope.

    Args:
        infer: True lets a model extract memories; False stores every turn.
        batch: Turns in one call of `add`, with `infer`.
        encoder: A sentence-transformers model, by name or folder.
        model: The model that extracts memories.
        threshold: Results with a lower score are dropped. mem0's default of 0.1 empties part of a large budget.
    """

    def __init__(
        self,
        infer: bool = False,
        batch: int = 10,
        encoder: str = "sentence-transformers/all-MiniLM-L6-v2",
        model: str = "gpt-4o-mini",
        threshold: float = 0.0,
    ) -> None:
        self.infer, self.batch, self.encoder, self.model, self.threshold = infer, batch, encoder, model, threshold
        self.memories: dict[str, Any] = {}
        self.made_of: dict[str, dict[str, list[str]]] = {}  # scope -> turn id -> ids of memories
        self.embedder: Any = None

    def open(self, scope: str) -> None:
        from mem0 import Memory
        from qdrant_client import QdrantClient

        store = {"client": QdrantClient(":memory:"), "collection_name": scope, "embedding_model_dims": 384}
        memory = Memory.from_config(
            {
                "vector_store": {"provider": "qdrant", "config": store},
                "embedder": {"provider": "huggingface", "config": {"model": self.encoder}},
                "llm": {"provider": "openai", "config": {"model": self.model, "temperature": 0.0}},
                "history_db_path": ":memory:",
            }
        )
        self.embedder = memory.embedding_model = self.embedder or memory.embedding_model
        self.memories[scope] = memory

    def add(self, scope: str, turns: list[dict[str, Any]]) -> None:
        size = self.batch if self.infer else 1
        for batch in (turns[i : i + size] for i in range(0, len(turns), size)):
            messages = [{"role": turn["role"], "content": dated(turn)} for turn in batch]
            sources = {"turn_ids": [turn["id"] for turn in batch]}
            made = self.memories[scope].add(messages, user_id=scope, metadata=sources, infer=self.infer)["results"]
            for turn in batch:
                self.made_of.setdefault(scope, {})[turn["id"]] = [memory["id"] for memory in made]

    def ready(self, scope: str) -> None:
        pass

    def search(self, scope: str, question: str, limit: int, at: str) -> list[dict[str, Any]]:
        # The parameter is `top_k`; `limit` is accepted and ignored.
        found = self.memories[scope].search(
            question, top_k=limit, filters={"user_id": scope}, threshold=self.threshold
        )["results"]
        return [
            {"text": one["memory"], "turn_ids": one["metadata"]["turn_ids"], "score": one["score"]} for one in found
        ]

    def forget(self, scope: str, ids: list[str]) -> None:
        known = self.made_of.get(scope, {})
        for memory in {memory for id in ids for memory in known.pop(id, [])}:
            self.memories[scope].delete(memory)

    def close(self, scope: str) -> None:
        self.memories.pop(scope).delete_all(user_id=scope)

    def describe(self) -> dict[str, Any]:
        packages = ["mem0ai", "qdrant-client", "sentence-transformers"]
        packages += [name for name in ("fastembed", "spacy", "en_core_web_sm") if find_spec(name)]
        return {
            "name": "mem0",
            "versions": {name: version(name) for name in packages},
            "parameters": {
                "infer": self.infer,
                "batch": self.batch if self.infer else 1,
                "encoder": self.encoder,
                "model": self.model if self.infer else None,
                "threshold": self.threshold,
            },
            "degraded": missing_parts(),
        }


def missing_parts() -> list[str]:
    """What mem0 would do without: it logs one line and goes on."""
    missing = []
    if not find_spec("fastembed"):
        missing.append("fastembed is missing, so there is no keyword search")
    elif problem := no_keywords():
        missing.append(f"fastembed cannot load Qdrant/bm25 ({problem}), so there is no keyword search")
    if not find_spec("spacy"):
        missing.append("spaCy is missing, so words are not lemmatised and entities are not linked")
    elif not find_spec("en_core_web_sm"):  # mem0 would run pip to get it
        missing.append("spaCy's en_core_web_sm is missing, so words are not lemmatised and entities are not linked")
    return missing


def no_keywords() -> str:
    """Why fastembed cannot load the files of its keyword encoder; empty if it can."""
    from fastembed import SparseTextEmbedding

    try:
        SparseTextEmbedding(model_name="Qdrant/bm25")
    except Exception as error:  # noqa: BLE001 - a missing file, a closed network; the reason is reported
        return type(error).__name__
    return ""


def dated(turn: dict[str, Any]) -> str:
    """The turn with its date and its speaker."""
    day = datetime.fromisoformat(turn["said_at"])
    return f"# {day:%a} {day.day} {day:%B %Y}\n{turn['speaker']}: {turn['text']}"
