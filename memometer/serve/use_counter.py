"""Counts of how often turns were recalled, written to the store in batches."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable

from memometer.store.protocol import Store


class UseCounter:
    """Counts uses in memory until `flush` writes them. Thread-safe.

    Args:
        store: holds the turns.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._uses: dict[str, Counter[str]] = {}

    def add(self, scope: str, ids: Iterable[str]) -> None:
        """Count one use of each turn."""
        with self._lock:
            self._uses.setdefault(scope, Counter()).update(ids)

    def flush(self) -> None:
        """Write the uses that were counted since the last call."""
        with self._lock:
            uses, self._uses = self._uses, {}
        for scope, counts in uses.items():
            if self._store.size(scope).episodes:
                self._store.change(scope, uses=counts)
