"""Measure, improve and train the memory of conversational agents.

    memory = memometer.open_memory("memory.db")
    memory.add("I sold the kayak to my cousin.", speaker="Nadia")
    print(memory.recall("Who bought the kayak?", budget_tokens=100).text)

The names below are imported at first use, so that `import memometer` is fast and needs no optional library.
"""

from __future__ import annotations

TYPE_CHECKING = False  # the module `typing` takes ten milliseconds
if TYPE_CHECKING:
    from typing import Any

    from memometer.harness.evaluate import evaluate
    from memometer.memory import Memory, Recall, State, Turn
    from memometer.report.compare import compare
    from memometer.serve.open_memory import open_memory
    from memometer.serve.user_memory import UserMemory
    from memometer.systems.adaptive import AdaptiveMemory
    from memory_system import MemorySystem

__all__ = [
    "AdaptiveMemory",
    "Memory",
    "MemorySystem",
    "Recall",
    "State",
    "Turn",
    "UserMemory",
    "compare",
    "evaluate",
    "open_memory",
]

_MODULES = {
    "AdaptiveMemory": "memometer.systems.adaptive",
    "Memory": "memometer.memory",
    "MemorySystem": "memory_system",
    "Recall": "memometer.memory",
    "State": "memometer.memory",
    "Turn": "memometer.memory",
    "UserMemory": "memometer.serve.user_memory",
    "compare": "memometer.report.compare",
    "evaluate": "memometer.harness.evaluate",
    "open_memory": "memometer.serve.open_memory",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'memometer' has no attribute {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
