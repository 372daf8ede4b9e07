"""Memory of one user with the methods that users of mem0 know, over any store.

    memory = UserMemory("ada")
    memory.add("I sold the kayak.")
    memory.search("Who sold a kayak?")            # {"results": [{"id", "memory", "score", ...}, ...]}

No model is called: what is added is stored verbatim. Every user has a memory of the local tenant, so that the command
line finds it too (`memometer recall --memory user-ada ...`).
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from memometer.serve import LOCAL_TENANT
from memometer.serve.new_turns import NewTurn
from memometer.serve.open_memory import open_memory
from memometer.serve.registry import InvalidRequest, NotFound
from memometer.serve.turn_versions import FORMER
from memometer.store.episode import Episode
from memometer.store.turn_conversion import metadata_of, turn_of

Message = Mapping[str, Any]

MAX_RESULTS = 1000

_lock = threading.Lock()
_open: Counter[str] = Counter()
"""Open memories by the URL of their store, which they share."""


class UserMemory:
    """The memory of one user. Thread-safe; other processes may use the same memory.

    Args:
        user_id: 1 to 59 letters, digits, dots, dashes and underscores.
        location: as in `open_memory`; None for the store of the `memometer` command.
        options: further arguments of `open_memory`.

    Raises:
        InvalidRequest: the id is not valid.
    """

    def __init__(self, user_id: str, location: str | Path | None = None, **options: Any) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,59}", user_id):
            raise InvalidRequest(
                f"invalid user_id {user_id!r}; use 1 to 59 letters, digits, dots, dashes and underscores."
            )
        self.user_id = user_id
        self._stored = open_memory(location, name=f"user-{user_id}", **options)
        self._system = str(options.get("system", "adaptive"))
        self._memories, self._name = self._stored.memories, self._stored.name
        with _lock:
            _open[self._memories.memory_url] += 1

    def add(
        self,
        messages: str | Message | Sequence[Message],
        *,
        metadata: Mapping[str, str | int | float] | None = None,
        timestamp: datetime | None = None,
    ) -> dict[str, Any]:
        """Store a text, a message, or messages with `role` and `content`, verbatim.

        Args:
            messages: a text counts as one message of the user.
            metadata: values of each message, which `get_all` and `search` return.
            timestamp: the time; None for now.

        Returns:
            {"results": [{"id": ..., "memory": ..., "event": "ADD"}, ...]}.

        Raises:
            InvalidRequest: a message has no text.
        """
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        elif isinstance(messages, Mapping):
            messages = [messages]
        new = [NewTurn(_content(m), _speaker(m), timestamp, metadata=dict(metadata or {})) for m in messages]
        ids = self._stored.add_turns(new)
        return {"results": [{"id": id, "memory": turn.text, "event": "ADD"} for id, turn in zip(ids, new, strict=True)]}

    def search(self, query: str, *, limit: int = 10, threshold: float | None = None) -> dict[str, Any]:
        """Return the memories that fit a query best, the best first.

        Args:
            query: any text.
            limit: highest number of results.
            threshold: lowest score; None for all.
        """
        found = self._memories.retrieve(LOCAL_TENANT, self._name, query, k=_limited(limit))
        results = [{**_record(hit.episode), "score": hit.score} for hit in found]
        return {"results": [r for r in results if threshold is None or r["score"] >= threshold]}

    def get(self, memory_id: str) -> dict[str, Any] | None:
        """Return a memory, or None if there is none of this id."""
        try:
            found = self._memories.get(LOCAL_TENANT, self._name, memory_id)
        except NotFound:
            return None
        return None if found.archived else _record(found)

    def get_all(self, *, limit: int = 100) -> dict[str, Any]:
        """Return the newest memories, the newest first."""
        found = self._memories.newest(LOCAL_TENANT, self._name, k=_limited(limit))
        return {"results": [_record(episode) for episode in found]}

    def update(self, memory_id: str, data: str) -> dict[str, Any]:
        """Replace the text of a memory; the former text stays in its history.

        Raises:
            NotFound: there is no such memory.
        """
        self._memories.update(LOCAL_TENANT, self._name, memory_id, data)
        return {"message": "Memory updated successfully!"}

    def delete(self, memory_id: str) -> dict[str, Any]:
        """Delete a memory and its history permanently.

        Raises:
            NotFound: there is no such memory.
        """
        if not self._stored.forget([memory_id], permanent=True):
            raise NotFound(f"there is no memory {memory_id!r} of user {self.user_id!r}.")
        return {"message": "Memory deleted successfully!"}

    def delete_all(self) -> dict[str, Any]:
        """Delete all memories of the user permanently."""
        self._memories.registry.delete(LOCAL_TENANT, self._name)
        self._memories.registry.ensure(LOCAL_TENANT, self._name, system=self._system)
        return {"message": "Memories deleted successfully!"}

    def history(self, memory_id: str) -> list[dict[str, Any]]:
        """Return the texts that a memory has had, the oldest first; empty if there is none of this id."""
        texts = self._memories.history(LOCAL_TENANT, self._name, memory_id)
        changes = []
        for before, episode in zip((None, *texts), texts, strict=False):
            record = _record(episode)
            changes.append({
                "memory_id": memory_id, "old_memory": before and turn_of(before).text, "new_memory": record["memory"],
                "event": "UPDATE" if before else "ADD", "created_at": record["created_at"],
            })  # fmt: skip
        return changes

    def close(self) -> None:
        """Close the memory. The store is closed with the last memory of a user that is open on it."""
        self._memories.uses.flush()
        with _lock:
            _open[self._memories.memory_url] -= 1
            is_last = _open[self._memories.memory_url] <= 0
        if is_last:
            self._stored.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _content(message: Message) -> str:
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, str) or not content.strip():
        raise InvalidRequest(f"expected a message with role and content, got {message!r:.80}.")
    return content


def _speaker(message: Message) -> str:
    return str(message.get("name") or message.get("role") or "user")


def _limited(limit: int) -> int:
    if not isinstance(limit, int) or not 1 <= limit <= MAX_RESULTS:
        raise InvalidRequest(f"got limit={limit!r}; expected an integer from 1 to {MAX_RESULTS:,}.")
    return limit


def _record(episode: Episode) -> dict[str, Any]:
    """Return an episode as mem0 returns a memory."""
    turn = turn_of(episode)
    return {
        "id": str(episode.details.get(FORMER, episode.id)), "memory": turn.text, "role": turn.speaker,
        "created_at": turn.said_at.isoformat(),
        "metadata": dict(metadata_of(episode)),
    }  # fmt: skip
