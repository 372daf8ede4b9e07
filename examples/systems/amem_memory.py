# /// script
# requires-python = ">=3.11"
# dependencies = ["a-mem==0.2.6", "torch==2.13.0"]
# ///
"""A-MEM: a note for each turn, with keywords, context and tags that a model writes, and links between notes."""

from __future__ import annotations

import shutil
import tempfile
from importlib.metadata import version
from typing import Any


class AMem:
    """One ChromaDB folder for each scope. A model writes every note: about two calls for each turn.

    Args:
        encoder: A sentence-transformers model, by name or folder.
        model: The model of OPENAI_BASE_URL.
    """

    def __init__(self, encoder: str = "all-MiniLM-L6-v2", model: str = "gpt-4o-mini") -> None:
        self.encoder, self.model = encoder, model
        self.memories: dict[str, Any] = {}
        self.folders: dict[str, str] = {}
        self.turns: dict[str, dict[str, str]] = {}

    def open(self, scope: str) -> None:
        from agentic_memory.memory_system import AgenticMemorySystem

        self.folders[scope] = tempfile.mkdtemp(prefix="amem-")
        self.memories[scope] = AgenticMemorySystem(
            model_name=self.encoder, llm_backend="openai", llm_model=self.model, storage_path=self.folders[scope]
        )
        self.turns[scope] = {}

    def add(self, scope: str, turns: list[dict[str, Any]]) -> None:
        for turn in turns:
            time = "".join(c for c in turn["said_at"][:16] if c.isdigit())  # A-MEM's own format: YYYYMMDDHHMM
            note = self.memories[scope].add_note(f"{turn['speaker']} says: {turn['text']}", time=time)
            self.turns[scope][note] = turn["id"]

    def ready(self, scope: str) -> None:
        pass

    def search(self, scope: str, question: str, limit: int, at: str) -> list[dict[str, Any]]:
        memory, turns = self.memories[scope], self.turns[scope]
        # search_agentic hides every failure as an empty list, so its size is checked.
        found = memory.search_agentic(question or "?", k=min(limit, max(1, len(turns))))
        notes = [memory.read(one["id"]) for one in found]
        return [
            {
                "text": f"{note.timestamp[:8]} {note.content} (context: {note.context}; keywords: "
                f"{', '.join(note.keywords)}; tags: {', '.join(note.tags)})",
                "turn_ids": [turns[note.id]],
                "score": None,
            }
            for note in notes
            if note
        ]

    def close(self, scope: str) -> None:
        del self.memories[scope], self.turns[scope]
        shutil.rmtree(self.folders.pop(scope), ignore_errors=True)

    def describe(self) -> dict[str, Any]:
        return {
            "name": "A-MEM",
            "versions": {name: version(name) for name in ("a-mem", "chromadb", "sentence-transformers")},
            "parameters": {"encoder": self.encoder, "model": self.model},
            "degraded": [],
        }
