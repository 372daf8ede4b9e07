"""Consolidation of changed scopes in the background, when the service is idle."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Self

from memometer.store.hybrid_scoring import DEFAULT, Weights
from memometer.store.protocol import Store


class IdleConsolidation:
    """Consolidates the touched scopes after a quiet period.

        with IdleConsolidation(store, after_seconds=60, now=time.time) as idle:
            idle.touch("agent-1")          # at every request

    Args:
        store: a store that supports use from several threads.
        after_seconds: length of the quiet period.
        now: returns the present time in Unix seconds.
        weights: parameters of merging and forgetting.
        done: called after each consolidation of all touched scopes.
    """

    def __init__(
        self,
        store: Store,
        *,
        after_seconds: float,
        now: Callable[[], float],
        weights: Weights = DEFAULT,
        done: Callable[[], object] = lambda: None,
    ) -> None:
        self._store = store
        self._after_seconds = after_seconds
        self._now = now
        self._weights = weights
        self._done = done
        self._touched: dict[str, None] = {}
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="consolidation", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Finish a running consolidation, then stop."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def touch(self, scope: str) -> None:
        """Mark a scope as in use."""
        with self._changed:
            self._touched[scope] = None
            self._changed.notify()

    def _run(self) -> None:
        while scopes := self._wait():
            for scope in scopes:
                try:
                    self._store.consolidate(scope, at=self._now(), weights=self._weights)
                except Exception as error:  # noqa: BLE001  # an error of a back end must not end the thread
                    print(f"Cannot consolidate scope {scope!r} ({error}). The scope is unchanged.", file=sys.stderr)
            self._done()

    def _wait(self) -> list[str]:
        """Wait for a quiet period and return the touched scopes; none after `__exit__`."""
        with self._changed:
            while not self._stopped:
                if not self._touched:
                    self._changed.wait()
                elif not self._changed.wait(self._after_seconds):
                    scopes = list(self._touched)
                    self._touched.clear()
                    return scopes
        return []
