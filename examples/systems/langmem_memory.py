# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "langmem==0.0.30", "langgraph==1.2.24", "langchain-openai==1.7.4", "sentence-transformers==6.2.0", "torch==2.13.0",
# ]
# ///
"""LangMem: memories that a model extracts and keeps up to date in LangGraph's store.

The model must support tools. A memory names all turns of the batches that wrote it.
"""

from __future__ import annotations

import os
from datetime import datetime
from importlib.metadata import version
from typing import Any

os.environ.setdefault("LANGSMITH_TRACING", "false")


class LangMem:
    """Each scope is a namespace of one store.

    Args:
        encoder: A sentence-transformers model, by name or folder.
        model: The model of OPENAI_BASE_URL.
        batch: Turns in one call of the memory manager.
    """

    def __init__(
        self, encoder: str = "sentence-transformers/all-MiniLM-L6-v2", model: str = "gpt-4o-mini", batch: int = 10
    ) -> None:
        from langchain_openai import ChatOpenAI
        from langgraph.store.memory import InMemoryStore
        from langmem import create_memory_store_manager
        from sentence_transformers import SentenceTransformer

        encode = SentenceTransformer(encoder, device="cpu").encode
        embed = lambda texts: encode(texts, normalize_embeddings=True).tolist()  # noqa: E731
        self.encoder, self.model, self.batch = encoder, model, batch
        self.store = InMemoryStore(index={"dims": 384, "embed": embed, "fields": ["content"]})
        # Without use_responses_api=False, some model names would use another route.
        client = ChatOpenAI(model=model, temperature=0.0, use_responses_api=False)
        self.manager = create_memory_store_manager(
            client, namespace=("{langgraph_user_id}",), store=self.store, enable_deletes=False
        )
        self.sources: dict[str, dict[str, list[str]]] = {}

    def open(self, scope: str) -> None:
        self.sources[scope] = {}

    async def add(self, scope: str, turns: list[dict[str, Any]]) -> None:
        # The manager finds its namespace and its store in the configuration of the call.
        place = {"configurable": {"langgraph_user_id": scope}}
        for batch in (turns[i : i + self.batch] for i in range(0, len(turns), self.batch)):
            messages = [{"role": turn["role"], "content": dated(turn)} for turn in batch]
            for written in await self.manager.ainvoke({"messages": messages}, config=place):
                sources = self.sources[scope].setdefault(str(written["key"]), [])
                sources += [turn["id"] for turn in batch if turn["id"] not in sources]

    def ready(self, scope: str) -> None:
        pass

    async def search(self, scope: str, question: str, limit: int, at: str) -> list[dict[str, Any]]:
        found = await self.store.asearch((scope,), query=question, limit=limit)
        sources = self.sources[scope]
        return [
            {"text": text_of(item.value), "turn_ids": sources.get(item.key) or None, "score": item.score}
            for item in found
        ]

    def close(self, scope: str) -> None:
        for item in self.store.search((scope,), limit=100_000):
            self.store.delete((scope,), item.key)
        del self.sources[scope]

    def describe(self) -> dict[str, Any]:
        packages = ("langmem", "langgraph", "langchain-openai", "sentence-transformers")
        return {
            "name": "LangMem",
            "versions": {name: version(name) for name in packages},
            "parameters": {"encoder": self.encoder, "model": self.model, "batch": self.batch},
            "degraded": [],
        }


def text_of(value: dict[str, Any]) -> str:
    """The text of a memory, which the manager stores as {kind, content: {content}}."""
    content = value.get("content")
    return str(content.get("content", content) if isinstance(content, dict) else content)


def dated(turn: dict[str, Any]) -> str:
    """The turn with its date and its speaker."""
    day = datetime.fromisoformat(turn["said_at"])
    return f"# {day:%a} {day.day} {day:%B %Y}\n{turn['speaker']}: {turn['text']}"
