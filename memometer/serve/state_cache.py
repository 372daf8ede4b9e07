"""The states of named memories: made from a scope's turns when they are asked for, and kept while they are current."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from memometer.budget import Recall, State, TokenCounter, Turn
from memometer.models.encoders import Encoder
from memometer.serve.answering import Answers
from memometer.store.protocol import Store
from memometer.store.turn_conversion import in_time_order, turn_of
from memometer.systems import load

MOST_KEPT = 32
"""States in memory; the one that was not asked for longest goes first, and is made again when it is."""


@dataclass
class Kept:
    """A state and the change of its scope that it is of."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    state: State | None = None
    changes: int = -1


class States:
    """Recalls by any registered system from the turns in a store."""

    def __init__(self, store: Store, encoder: Encoder, count: TokenCounter, answers: Answers) -> None:
        self._store = store
        self._encoder = encoder
        self._count = count
        self._answers = answers
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._system = cache(self._made)

    def recall(self, scope: str, system: str, question: str, budget_tokens: int) -> Recall:
        """As the system's own."""
        with self.of(scope, system) as (memory, state):
            recall: Recall = memory.checked_recall(state, question, budget_tokens)
            return recall

    @contextmanager
    def of(self, scope: str, system: str) -> Iterator[tuple[Any, Any]]:
        """(memory, its state), for one at a time, because bringing a state up to date changes it."""
        memory = self._system(system)
        with self._lock:
            kept = self._kept.setdefault(scope, Kept())
            self._kept.move_to_end(scope)
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        with kept.lock:
            self._bring_up_to_date(kept, scope, memory)
            yield memory, kept.state

    def drop(self, scope: str) -> None:
        """Forget a state."""
        with self._lock:
            self._kept.pop(scope, None)

    def _bring_up_to_date(self, kept: Kept, scope: str, memory: Any) -> None:
        changes = self._store.size(scope).changes
        if kept.state is not None and kept.changes == changes:
            return
        turns = [turn_of(e) for e in in_time_order(e for e in self._store.scan(scope) if not e.archived)]
        state = kept.state
        if state is None or state.turns != turns[: len(state.turns)]:
            state = memory.new()
        kept.state = None  # not to be believed, should observing fail in the middle
        self._observe(memory, state, turns[len(state.turns) :])
        kept.state, kept.changes = state, changes

    def _observe(self, memory: Any, state: State, turns: Iterable[Turn]) -> None:
        if memory.needs_model:
            with self._answers.reading():
                memory.observe(state, list(turns))
        else:
            memory.observe(state, list(turns))

    def _made(self, system: str) -> Any:
        kind: Any = load(system)
        return kind(count=self._count, encoder=self._encoder) if kind.needs_encoder else kind(count=self._count)
