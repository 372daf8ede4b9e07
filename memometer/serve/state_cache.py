"""Cache of memory states: built from the turns of a scope on demand, and updated when the scope changes."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from cachetools import LRUCache

from memometer.memory import Recall, State, Turn
from memometer.models.encoders import Encoder
from memometer.serve.answering import AnswerModel
from memometer.store import deadline
from memometer.store.protocol import Store
from memometer.store.turn_conversion import in_time_order, turn_of
from memometer.systems import load
from memometer.token_counters import TokenCounter

MAX_STATES = 32
"""States in the cache; the least recently used one is dropped and built again on demand."""

PART_TURNS = 500
"""Turns that are observed between two checks of the deadline."""

LOCK_SECONDS = 600.0


@dataclass
class CachedState:
    """A state, and the change count of its scope when it was built."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    state: State | None = None
    changes: int = -1


class StateCache:
    """Recalls with any registered memory system from the turns in a store.

    Args:
        store: holds the turns.
        encoder: for systems that need one.
        count: counts the tokens of a recall.
        model: for systems that write with a model.
    """

    def __init__(self, store: Store, encoder: Encoder, count: TokenCounter, model: AnswerModel) -> None:
        self._store = store
        self._encoder = encoder
        self._count = count
        self._model = model
        self._lock = threading.Lock()
        self._states: LRUCache[str, CachedState] = LRUCache(MAX_STATES)
        self._system = cache(self._build_system)

    def recall(self, scope: str, system: str, question: str, budget_tokens: int, *, at: float | None = None) -> Recall:
        """Return the system's recall for a question, at most `budget_tokens` long.

        Args:
            scope: the memory's scope.
            system: its memory system.
            question: the question.
            budget_tokens: upper limit of the text.
            at: recall from turns until this time only, in Unix seconds; None recalls from all.
        """
        if at is not None and any(e.at > at for e in self._store.scan(scope) if not e.archived):
            memory, state = self._system(system), self._system(system).new()
            episodes = (e for e in self._store.scan(scope) if not e.archived and e.at <= at)
            self._observe(memory, state, [turn_of(e) for e in in_time_order(episodes)])
            past: Recall = memory.checked_recall(state, question, budget_tokens)
            return past
        with self.of(scope, system) as (memory, state):
            recall: Recall = memory.checked_recall(state, question, budget_tokens)
            return recall

    @contextmanager
    def of(self, scope: str, system: str) -> Iterator[tuple[Any, Any]]:
        """Yield (memory system, its current state of a scope). The state is locked, because an update changes it."""
        memory = self._system(system)
        with self._lock:
            cached = self._states.setdefault(scope, CachedState())
        if not cached.lock.acquire(timeout=deadline.remaining(LOCK_SECONDS)):
            raise deadline.DeadlineExceeded("the memory is being prepared for its first recall; try again later.")
        try:
            self._update(cached, scope, memory)
            yield memory, cached.state
        finally:
            cached.lock.release()

    def drop(self, scope: str) -> None:
        """Remove the state of a scope from the cache."""
        with self._lock:
            self._states.pop(scope, None)

    def _update(self, cached: CachedState, scope: str, memory: Any) -> None:
        changes = self._store.size(scope).changes
        if cached.state is not None and cached.changes == changes:
            return
        turns = [turn_of(e) for e in in_time_order(e for e in self._store.scan(scope) if not e.archived)]
        state = cached.state
        if state is None or state.turns != turns[: len(state.turns)]:
            state = memory.new()
        while missing := turns[len(state.turns) : len(state.turns) + PART_TURNS]:
            cached.state = None  # if observing fails half-way, the state is rebuilt
            self._observe(memory, state, missing)
            cached.state, cached.changes = state, -1
            deadline.check()  # the next request continues here
        cached.state, cached.changes = state, changes

    def _observe(self, memory: Any, state: State, turns: Sequence[Turn]) -> None:
        with self._model.as_dspy_model() if memory.needs_model else nullcontext():
            memory.observe(state, turns)

    def _build_system(self, system: str) -> Any:
        kind: Any = load(system)
        return kind(count=self._count, encoder=self._encoder) if kind.needs_encoder else kind(count=self._count)
