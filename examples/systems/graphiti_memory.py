# /// script
# requires-python = ">=3.11"
# dependencies = ["graphiti-core[kuzu]==0.31.2", "httpx==0.28.1", "sentence-transformers==6.2.0", "torch==2.13.0"]
# ///
"""Graphiti: a temporal knowledge graph that a model writes, in an embedded Kuzu database.

Each turn is an episode, and a fact names its episodes, so the turns of a fact are exact.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

os.environ["GRAPHITI_TELEMETRY_ENABLED"] = "false"  # read when graphiti_core is imported


class Graphiti:
    """One database in memory for each scope. A model reads every turn: four or more calls.

    Args:
        encoder: A sentence-transformers model, by name or folder.
        model: The model of OPENAI_BASE_URL.
        schema: True asks the server for JSON of a schema; False describes the schema in the prompt.
    """

    def __init__(
        self,
        encoder: str = "sentence-transformers/all-MiniLM-L6-v2",
        model: str = "gpt-4o-mini",
        schema: bool = True,
    ) -> None:
        from sentence_transformers import SentenceTransformer

        self.encoder, self.model, self.schema = encoder, model, schema
        self.transformer = SentenceTransformer(encoder, device="cpu")
        self.graphs: dict[str, Any] = {}
        self.turns: dict[str, dict[str, str]] = {}

    async def open(self, scope: str) -> None:
        from graphiti_core import Graphiti as Graph
        from graphiti_core.cross_encoder.openai_reranker_client import OpenAIRerankerClient
        from graphiti_core.driver.kuzu_driver import KuzuDriver
        from graphiti_core.embedder.client import EmbedderClient
        from graphiti_core.llm_client.config import LLMConfig
        from graphiti_core.llm_client.openai_generic_client import OpenAIGenericClient

        transformer = self.transformer

        class Embedder(EmbedderClient):
            async def create(self, input_data: Any) -> list[float]:
                text = input_data if isinstance(input_data, str) else input_data[0]
                return transformer.encode([text], normalize_embeddings=True)[0].tolist()

            async def create_batch(self, input_data_list: list[str]) -> list[list[float]]:
                return transformer.encode(input_data_list, normalize_embeddings=True).tolist()

        # The small model and the reranker have defaults of their own, which would ask for other models.
        config = LLMConfig(
            api_key=os.environ.get("OPENAI_API_KEY", "none"),
            base_url=os.environ.get("OPENAI_BASE_URL"),
            model=self.model,
            small_model=self.model,
            temperature=0.0,
        )
        driver = KuzuDriver()
        mode = "json_schema" if self.schema else "json_object"
        self.graphs[scope] = Graph(
            graph_driver=driver,
            llm_client=OpenAIGenericClient(config, structured_output_mode=mode),
            embedder=Embedder(),
            cross_encoder=OpenAIRerankerClient(config),
            max_coroutines=1,
        )
        # The driver's own method does nothing, and without the indexes no word is found.
        await driver.graph_ops.build_indices_and_constraints(driver)
        driver._database = scope  # otherwise a scope is taken for another database and gets a copy of the driver
        self.turns[scope] = {}

    async def add(self, scope: str, turns: list[dict[str, Any]]) -> None:
        for turn in turns:
            added = await self.graphs[scope].add_episode(
                name=turn["id"],
                episode_body=f"{turn['speaker']}: {turn['text']}",
                source_description="conversation",
                reference_time=datetime.fromisoformat(turn["said_at"]).replace(tzinfo=UTC),
                group_id=scope,
            )
            self.turns[scope][added.episode.uuid] = turn["id"]

    def ready(self, scope: str) -> None:
        pass

    async def search(self, scope: str, question: str, limit: int, at: str) -> list[dict[str, Any]]:
        turns = self.turns[scope]
        facts = await self.graphs[scope].search(question or "?", group_ids=[scope], num_results=limit)
        return [
            {
                "text": f"{fact.valid_at:%Y-%m-%d}: {fact.fact}" if fact.valid_at else fact.fact,
                "turn_ids": [turns[id] for id in fact.episodes if id in turns] or None,
                "score": None,
            }
            for fact in facts
        ]

    async def close(self, scope: str) -> None:
        await self.graphs.pop(scope).close()
        del self.turns[scope]

    def describe(self) -> dict[str, Any]:
        packages = ("graphiti-core", "kuzu", "sentence-transformers")
        return {
            "name": "Graphiti",
            "versions": {name: version(name) for name in packages},
            "parameters": {"encoder": self.encoder, "model": self.model, "schema": self.schema, "database": "Kuzu"},
            "degraded": [],
        }
