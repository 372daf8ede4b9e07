"""The memory systems by name. A new one is a file in this folder and a line here.

The values are strings, so that a system is imported only when it is used.
"""

from importlib import import_module
from typing import Any

SYSTEMS = {
    "adaptive": "memometer.systems.adaptive:AdaptiveMemory",
    "bm25": "memometer.systems.bm25:BM25",
    "bm25_neighbours": "memometer.systems.bm25:BM25Neighbours",
    "codebook": "memometer.systems.codebook:Codebook",
    "entity": "memometer.systems.entity:Entity",
    "episodic": "memometer.systems.episodic:Episodic",
    "episodic_seed": "memometer.systems.episodic:EpisodicSeed",
    "fact_augmented": "memometer.systems.fact_augmented:FactAugmented",
    "full_context": "memometer.systems.full_context:FullContext",
    "knowledge_graph": "memometer.systems.knowledge_graph:KnowledgeGraph",
    "random": "memometer.systems.random_turns:RandomTurns",
    "recent": "memometer.systems.recent:Recent",
    "rewritten_notes": "memometer.systems.rewritten_notes:RewrittenNotes",
    "rrf": "memometer.systems.rrf:RRF",
    "session": "memometer.systems.session:Session",
    "simple": "memometer.systems.recent:Recent",  # the baseline Simple Predict
    "summary": "memometer.systems.summary:Summary",
    "summary_buffer": "memometer.systems.summary_buffer:SummaryBuffer",
    "untrained": "memometer.systems.untrained:Untrained",
    "vector": "memometer.systems.vector:Vector",
}

BASELINES = {
    "none": "memometer.systems.baselines:NoMemory",
    "refusal": "memometer.systems.baselines:Refusal",
    "oracle": "memometer.systems.baselines:Oracle",
}
"""The baselines of every evaluation. `recent` and `full_context` are memory systems like any other."""

SIMPLE = ("full_context", "recent", "session", "bm25", "random")
"""Memory systems that serve as the reference of comparisons: the strongest of them in a run, unless one is named."""


FORMER_NAMES = {"evolving": "rewritten_notes", "rich": "fact_augmented"}


def current_name(name: str) -> str:
    """Return the present name of a system that a file from an earlier version names."""
    return FORMER_NAMES.get(name, name)


def load(name: str) -> type:
    """Return the class of a memory system or a baseline.

    Raises:
        KeyError: the name is unknown; the message lists the known ones.
    """
    found = SYSTEMS | BASELINES
    if name not in found:
        raise KeyError(f"unknown memory system {name!r}; known: {', '.join(sorted(SYSTEMS))}")
    module, _, attribute = found[name].partition(":")
    return getattr(import_module(module), attribute)


def form(name: str) -> Any:
    """Return the format of turns with this name, or None for lines.

    Raises:
        ValueError: the name is unknown.
        RuntimeError: the library of the format is not installed.
    """
    return import_module("memometer.reader.context_formats").form(name)
