"""One memory for a program: open it, add text, recall, answer.

    memory = open_memory("memory.db")
    memory.add("I sold the kayak to my cousin.", speaker="Nadia")
    memory.recall("Who bought the kayak?", budget_tokens=100).text
    memory.answer("Who bought the kayak?")

Only `answer` needs a language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from memometer.memory import Recall
from memometer.serve import LOCAL_TENANT, default_url
from memometer.serve.new_turns import NewTurn
from memometer.serve.registry import DEFAULT_MEMORY
from memometer.serve.tenants import TenantMemories

BUDGET_TOKENS = 1_000
"""The default budget of `recall` and `answer`."""


def open_memory(
    location: str | Path | None = None,
    *,
    name: str = DEFAULT_MEMORY,
    system: str = "adaptive",
    encoder: str | None = None,
    tokenizer: str | None = None,
    model: str | None = None,
    api_base: str | None = None,
) -> StoredMemory:
    """Open a memory in a store. The store and the memory are created if they do not exist.

    Args:
        location: a store URL (memometer/store/__init__.py), or the path of an SQLite file. None opens the store of
            the `memometer` command.
        name: the memory's name in the store.
        system: the memory system of a new memory. An existing memory keeps its own.
        encoder: the encoder of systems that need one (memometer/models/encoders.py); None for the default one.
        tokenizer: tokenizer that budgets are counted with (memometer/token_counters.py); None for o200k_base.
        model: the language model of `answer` and of systems that write with a model; None for the default one.
        api_base: URL of an OpenAI-compatible server for `model`.

    Returns:
        The memory. Encoder and model are loaded at first use; `adaptive` needs neither for `add` and `recall`.

    Raises:
        StoreError: the store cannot be opened.
        InvalidRequest: the name or the system is not valid.
    """
    url = default_url() if location is None else str(location)
    if "://" not in url:
        url = f"sqlite:///{url}"
    memories = TenantMemories(
        url, encoder=encoder, tokenizer=tokenizer, model=model, api_base=api_base, always_encode=False
    )
    memories.registry.ensure(LOCAL_TENANT, name, system=system)
    return StoredMemory(memories, name)


class StoredMemory:
    """A memory in a store. Thread-safe; other processes may use the same memory.

    Args:
        memories: the memories of the store.
        name: the memory's name.
    """

    def __init__(self, memories: TenantMemories, name: str) -> None:
        self.memories = memories
        self.name = name

    def add(
        self,
        text: str,
        *,
        speaker: str = "user",
        said_at: datetime | None = None,
        session: int | None = None,
        id: str | None = None,
    ) -> str:
        """Store one turn. It is durable when this returns.

        Args:
            text: the words.
            speaker: who said them.
            said_at: the time; None for now.
            session: the number of the session; None makes one session per day.
            id: unique in this memory; None chooses one. A repeated id stores nothing again.

        Returns:
            The id.
        """
        return self.add_turns([NewTurn(text, speaker, said_at, session, id=id)])[0]

    def add_turns(self, turns: Sequence[NewTurn]) -> list[str]:
        """Store up to 1,000 turns and return their ids."""
        return self.memories.observe(LOCAL_TENANT, self.name, turns)

    def recall(self, question: str, budget_tokens: int = BUDGET_TOKENS) -> Recall:
        """Return the text that best fits a question; `tokens <= budget_tokens`, always."""
        return self.memories.recall(LOCAL_TENANT, self.name, question, budget_tokens=budget_tokens)

    def answer(self, question: str, budget_tokens: int = BUDGET_TOKENS) -> str:
        """Let the language model answer a question from recalled turns.

        Raises:
            ModelUnavailable: the model cannot be loaded or does not answer.
        """
        answer, _ = self.memories.answer(LOCAL_TENANT, self.name, question, budget_tokens=budget_tokens)
        return answer

    def forget(self, ids: Sequence[str], *, permanent: bool = False) -> list[str]:
        """Archive turns, which excludes them from recall, or delete them. Returns the ids that existed."""
        return self.memories.forget(LOCAL_TENANT, self.name, ids, permanent=permanent)

    def close(self) -> None:
        """Close the store."""
        self.memories.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
