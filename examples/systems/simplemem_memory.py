# /// script
# requires-python = ">=3.11"
# dependencies = ["simplemem==0.1.0", "lancedb==0.40.0", "sentence-transformers==6.2.0", "torch==2.13.0"]
# ///
"""SimpleMem: facts that a model writes for each window of turns. Its search plans queries with the model, too.

A fact names all turns of its window.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from typing import Any


class SimpleMem:
    """One LanceDB folder for each scope.

    Args:
        encoder: A sentence-transformers model, by name or folder.
        model: The model of OPENAI_BASE_URL.
        window: Turns in one call of the model.
        planning: True plans the queries of a search with the model; False searches for the question alone.
    """

    def __init__(
        self,
        encoder: str = "sentence-transformers/all-MiniLM-L6-v2",
        model: str = "gpt-4o-mini",
        window: int = 40,
        planning: bool = True,
    ) -> None:
        self.encoder, self.model, self.window, self.planning = encoder, model, window, planning
        self.systems: dict[str, Any] = {}
        self.folders: dict[str, str] = {}
        self.buffers: dict[str, list[dict[str, Any]]] = {}
        self.sources: dict[str, dict[str, list[str]]] = {}

    def open(self, scope: str) -> None:
        from simplemem import SimpleMemConfig, SimpleMemSystem, set_config

        self.folders[scope] = tempfile.mkdtemp(prefix="simplemem-")
        set_config(SimpleMemConfig(embedding_model=self.encoder, window_size=self.window))
        self.systems[scope] = SimpleMemSystem(
            api_key=os.environ.get("OPENAI_API_KEY", "none"),
            base_url=os.environ.get("OPENAI_BASE_URL"),
            model=self.model,
            db_path=self.folders[scope],
            use_streaming=False,
            enable_parallel_processing=False,  # it loses the order of the windows
            enable_planning=self.planning,
            enable_reflection=False,
        )
        self.buffers[scope], self.sources[scope] = [], {}

    def add(self, scope: str, turns: list[dict[str, Any]]) -> None:
        buffer = self.buffers[scope]
        buffer += turns
        while len(buffer) >= self.window:
            self._process(scope, buffer[: self.window])
            del buffer[: self.window]

    def ready(self, scope: str) -> None:
        if self.buffers[scope]:
            self._process(scope, self.buffers[scope])
            self.buffers[scope] = []
        store = self.systems[scope].vector_store
        if self.sources[scope]:  # SimpleMem asks for an index that LanceDB no longer has, and goes on without one
            store.table.create_fts_index("lossless_restatement", replace=True)

    def _process(self, scope: str, window: list[dict[str, Any]]) -> None:
        """Give one window to the model. SimpleMem prints a failure and goes on without the window."""
        system, sources = self.systems[scope], self.sources[scope]
        for turn in window:
            system.add_dialogue(turn["speaker"], turn["text"], turn["said_at"])
        system.finalize()
        new = [entry.entry_id for entry in system.get_all_memories() if entry.entry_id not in sources]
        if not new:
            print(f"no facts from the turns {window[0]['id']} to {window[-1]['id']}", file=sys.stderr)
        for id in new:
            sources[id] = [turn["id"] for turn in window]

    def search(self, scope: str, question: str, limit: int, at: str) -> list[dict[str, Any]]:
        retriever = self.systems[scope].hybrid_retriever
        retriever.semantic_top_k = retriever.keyword_top_k = retriever.structured_top_k = limit
        sources = self.sources[scope]
        return [
            {
                "text": f"[{entry.timestamp}] {entry.lossless_restatement}"
                if entry.timestamp
                else entry.lossless_restatement,
                "turn_ids": sources.get(entry.entry_id),
                "score": None,
            }
            for entry in retriever.retrieve(question or "?")
        ]

    def close(self, scope: str) -> None:
        del self.systems[scope], self.buffers[scope], self.sources[scope]
        shutil.rmtree(self.folders.pop(scope), ignore_errors=True)

    def describe(self) -> dict[str, Any]:
        return {
            "name": "SimpleMem",
            "versions": {name: version(name) for name in ("simplemem", "lancedb", "sentence-transformers")},
            "parameters": {
                "encoder": self.encoder,
                "model": self.model,
                "window": self.window,
                "planning": self.planning,
            },
            "degraded": [],
        }
