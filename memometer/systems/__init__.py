"""The memory systems by name. A new one is a file in this folder and a line here.

Systems are named as strings, so that nothing heavy is imported before it is asked for.
"""

from importlib import import_module
from typing import Any

SYSTEMS = {
    "adaptive": "memometer.systems.adaptive:AdaptiveMemory",
    "bm25": "memometer.systems.bm25:BM25",
    "codebook": "memometer.systems.codebook:Codebook",
    "entity": "memometer.systems.entity:Entity",
    "episodic": "memometer.systems.episodic:Episodic",
    "episodic_seed": "memometer.systems.episodic:Seed",
    "evolving": "memometer.systems.rewritten_notes:Evolving",
    "full_context": "memometer.systems.full_context:FullContext",
    "knowledge_graph": "memometer.systems.knowledge_graph:KnowledgeGraph",
    "recent": "memometer.systems.recent:Recent",
    "rich": "memometer.systems.fact_augmented:Rich",
    "session": "memometer.systems.session:Session",
    "simple": "memometer.systems.recent:Recent",  # another name of it
    "summary": "memometer.systems.summary:Summary",
    "summary_buffer": "memometer.systems.summary_buffer:SummaryBuffer",
    "vector": "memometer.systems.vector:Vector",
}

BASELINES = {
    "none": "memometer.systems.baselines:NoMemory",
    "refusal": "memometer.systems.baselines:Refusal",
    "oracle": "memometer.systems.baselines:Oracle",
}
"""The baselines of every evaluation. `recent` and `full_context` are memory systems like any other."""


def load(name: str) -> type:
    """The class of a memory system or a baseline. Raises KeyError with the known names."""
    found = SYSTEMS | BASELINES
    if name not in found:
        raise KeyError(f"unknown memory system {name!r}; known: {', '.join(sorted(SYSTEMS))}")
    module, _, attribute = found[name].partition(":")
    return getattr(import_module(module), attribute)


def form(name: str) -> Any:
    """How turns are printed in a format; None for lines. Raises ValueError for an unknown one, RuntimeError without its
    library."""
    return import_module("memometer.reader.context_formats").form(name)
