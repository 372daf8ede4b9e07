"""The memory systems by name. A new one is a file in this folder and a line here.

Systems are named as strings, so that nothing heavy is imported before it is asked for.
"""

from importlib import import_module
from typing import Any

SYSTEMS = {
    "adaptive": "memory_system:MemorySystem",
    "bm25": "memories.bm25:BM25",
    "codebook": "memories.codebook:Codebook",
    "entity": "memories.entity:Entity",
    "episodic": "memories.episodic:Episodic",
    "episodic_seed": "memories.episodic:Seed",
    "evolving": "memories.evolving:Evolving",
    "full_context": "memories.full_context:FullContext",
    "knowledge_graph": "memories.knowledge_graph:KnowledgeGraph",
    "recent": "memories.recent:Recent",
    "rich": "memories.rich:Rich",
    "session": "memories.session:Session",
    "simple": "memories.recent:Recent",  # another name of it
    "summary": "memories.summary:Summary",
    "summary_buffer": "memories.summary_buffer:SummaryBuffer",
    "vector": "memories.vector:Vector",
}


def load(name: str) -> type:
    """The class of the memory system `name`. Raises KeyError with the known names."""
    if name not in SYSTEMS:
        raise KeyError(f"unknown memory system {name!r}; known: {', '.join(sorted(SYSTEMS))}")
    module, _, attribute = SYSTEMS[name].partition(":")
    return getattr(import_module(module), attribute)


def form(name: str) -> Any:
    """How turns are printed in a format (memories/toon.py); None for lines. Raises ValueError, RuntimeError."""
    return import_module("memories.toon").form(name)
