"""Work of the service in the background: writing the counted uses, and erasing what deletions left in files."""

from __future__ import annotations

import sys
import threading
import time
from typing import Self

from memometer.serve.auth import AccessTokens
from memometer.serve.tenants import TenantMemories
from memometer.store.episode import StoreError

USES_SECONDS = 30.0
QUIET_SECONDS = 0.5
"""Time between a deletion and the erasure, so that several deletions need one."""

REST_FACTOR = 10
"""Pause after an erasure, in multiples of its duration, because the store cannot be written meanwhile."""


class Upkeep:
    """Runs in a thread inside a `with` block, and finishes at its end.

    Args:
        memories: the memories of the service.
        tokens: its tokens, whose last uses are written.
    """

    def __init__(self, memories: TenantMemories, tokens: AccessTokens | None = None) -> None:
        self._memories = memories
        self._tokens = tokens
        self._deleted = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)

    def __enter__(self) -> Self:
        self._memories.on_deleted = self._deleted.set
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._memories.on_deleted = self._memories.store.erase
        self._erase()

    def _run(self) -> None:
        written = time.monotonic()
        while not self._stopped.wait(QUIET_SECONDS):
            started = time.monotonic()
            if started - written > USES_SECONDS:
                written = started
                try:
                    self._memories.uses.flush()
                    if self._tokens:
                        self._tokens.flush_uses()
                except StoreError as error:
                    print(f"Cannot count uses ({error}).", file=sys.stderr)
            if self._deleted.is_set():
                self._erase()
                self._stopped.wait(REST_FACTOR * (time.monotonic() - started))

    def _erase(self) -> None:
        self._deleted.clear()
        try:
            self._memories.store.erase()
        except StoreError as error:
            self._deleted.set()
            print(f"Cannot erase deleted texts yet ({error}).", file=sys.stderr)
