"""Consolidation while nobody asks: what has changed is merged, and what is to be forgotten archived."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Self

from memometer.store.hybrid_scoring import DEFAULT, Weights
from memometer.store.protocol import Store


class WhenIdle:
    """Consolidates the scopes that were touched, once nothing has been touched for some time.

        with WhenIdle(store, after_seconds=60, now=time.time) as idle:
            idle.touch("agent-1")          # at every request

    Args:
        store: which its back end lets several threads use.
        after_seconds: without a touch.
        now: the time that consolidation is told, in Unix seconds.
        weights: by which it merges and forgets.
        done: called after each round.
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
        """A round that has begun is finished."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def touch(self, scope: str) -> None:
        """Somebody is using a scope."""
        with self._changed:
            self._touched[scope] = None
            self._changed.notify()

    def _run(self) -> None:
        while scopes := self._wait():
            for scope in scopes:
                try:
                    self._store.consolidate(scope, at=self._now(), weights=self._weights)
                except Exception as error:  # noqa: BLE001  # whatever a back end raises must not end the rounds
                    print(f"Scope {scope!r} was not consolidated ({error}); it is left as it was.", file=sys.stderr)
            self._done()

    def _wait(self) -> list[str]:
        """The scopes to look at, after a quiet time; none when it is over."""
        with self._changed:
            while not self._stopped:
                if not self._touched:
                    self._changed.wait()
                elif not self._changed.wait(self._after_seconds):
                    scopes = list(self._touched)
                    self._touched.clear()
                    return scopes
        return []
