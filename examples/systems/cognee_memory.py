# /// script
# requires-python = ">=3.11"
# dependencies = ["cognee==1.6.5"]
# ///
"""Cognee: a knowledge graph that a model writes, with LanceDB, Ladybug and SQLite in a folder of this process.

The model and the encoder are those of OPENAI_BASE_URL. Each turn is one document; the search type CHUNKS names its
turn, and the other types return text without a source.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from datetime import datetime
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any


class Cognee:
    """One dataset for each scope. A model reads every turn: two or more calls.

    Args:
        model: The model of OPENAI_BASE_URL.
        embedding: The encoder of OPENAI_BASE_URL.
        dimensions: Length of its vectors.
        search: CHUNKS, or another of Cognee's search types whose context is shown.
    """

    def __init__(
        self,
        model: str = "gpt-4o-mini",
        embedding: str = "text-embedding-3-small",
        dimensions: int = 1536,
        search: str = "CHUNKS",
    ) -> None:
        self.model, self.embedding, self.dimensions, self.search_type = model, embedding, dimensions, search
        self.folder = tempfile.TemporaryDirectory(prefix="cognee-", ignore_cleanup_errors=True)
        self.ids: dict[str, Any] = {}
        url = os.environ.get("OPENAI_BASE_URL", "")
        key = os.environ.get("OPENAI_API_KEY", "none")
        if litellm := find_spec("litellm"):  # it contains the tokenizer that Cognee would otherwise download
            tokenizers = os.path.join(os.path.dirname(str(litellm.origin)), "litellm_core_utils", "tokenizers")
            os.environ.setdefault("TIKTOKEN_CACHE_DIR", tokenizers)
        os.environ.update(  # read when cognee is imported; it also reads a .env of the current folder
            {
                "TELEMETRY_DISABLED": "true",
                "ENABLE_BACKEND_ACCESS_CONTROL": "false",
                "COGNEE_SKIP_CONNECTION_TEST": "true",
                "CACHING": "false",
                "SYSTEM_ROOT_DIRECTORY": os.path.join(self.folder.name, "system"),
                "DATA_ROOT_DIRECTORY": os.path.join(self.folder.name, "data"),
                "COGNEE_LOGS_DIR": os.path.join(self.folder.name, "logs"),
                "LLM_PROVIDER": "openai",
                "LLM_MODEL": f"openai/{model}",
                "LLM_ENDPOINT": url,
                "LLM_API_KEY": key,
                "EMBEDDING_PROVIDER": "openai_compatible",
                "EMBEDDING_MODEL": embedding,
                "EMBEDDING_ENDPOINT": url,
                "EMBEDDING_API_KEY": key,
                "EMBEDDING_DIMENSIONS": str(dimensions),
            }
        )

    def open(self, scope: str) -> None:
        pass

    async def add(self, scope: str, turns: list[dict[str, Any]]) -> None:
        import cognee
        from cognee.tasks.ingestion.data_item import DataItem

        items = [DataItem(dated(turn), external_metadata={"turn": turn["id"]}) for turn in turns]
        await cognee.add(items, dataset_name=scope, skip_connection_test=True)
        found = await cognee.cognify(datasets=[scope])
        self.ids[scope] = next(iter(found), None)

    def ready(self, scope: str) -> None:
        pass

    async def search(self, scope: str, question: str, limit: int, at: str) -> list[dict[str, Any]]:
        import cognee

        kind = cognee.SearchType[self.search_type]
        chunks = kind is cognee.SearchType.CHUNKS
        found = await cognee.search(
            question or "?", query_type=kind, datasets=[scope], top_k=limit, only_context=not chunks
        )
        return [item for one in found for item in items_of(one)]

    async def close(self, scope: str) -> None:
        import cognee

        if dataset := self.ids.pop(scope, None):
            await cognee.datasets.delete_dataset(dataset)

    def __del__(self) -> None:
        shutil.rmtree(self.folder.name, ignore_errors=True)

    def describe(self) -> dict[str, Any]:
        return {
            "name": "Cognee",
            "versions": {name: version(name) for name in ("cognee", "lancedb", "ladybug")},
            "parameters": {
                "model": self.model,
                "embedding": self.embedding,
                "dimensions": self.dimensions,
                "search": self.search_type,
            },
            "degraded": [],
        }


def items_of(found: Any) -> list[dict[str, Any]]:
    """The items in a result: a chunk, a text, or a list of these."""
    found = getattr(found, "search_result", found)
    if isinstance(found, list):
        return [item for one in found for item in items_of(one)]
    if not isinstance(found, dict):
        return [{"text": str(found), "turn_ids": None, "score": None}] if found else []
    if "search_result" in found:
        return items_of(found["search_result"])
    metadata = found.get("external_metadata") or {}
    metadata = json.loads(metadata) if isinstance(metadata, str) else metadata
    turn = metadata.get("turn")
    return [{"text": found.get("text"), "turn_ids": [turn] if turn else None, "score": None}]


def dated(turn: dict[str, Any]) -> str:
    """The turn with its date and its speaker."""
    day = datetime.fromisoformat(turn["said_at"])
    return f"# {day:%a} {day.day} {day:%B %Y}\n{turn['speaker']}: {turn['text']}"
