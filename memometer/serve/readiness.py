"""Readiness of the service: a write to the store and a read from it, apart from all requests."""

from __future__ import annotations

import time

from anyio import CapacityLimiter, move_on_after, to_thread

from memometer.serve.tenants import TenantMemories
from memometer.store import deadline
from memometer.store.episode import Episode, StoreError

SCOPE = "health:"
SECONDS = 5
"""Time for a check."""

KEEP_SECONDS = 1
"""Time for which a result answers further requests, so that callers cannot make the store write without limit."""


class Readiness:
    """Checks the store in a thread of its own, one check at a time.

    Args:
        memories: hold the store.
    """

    def __init__(self, memories: TenantMemories) -> None:
        self._memories = memories
        self._thread = CapacityLimiter(1)
        self._ready_until = 0.0

    async def check(self) -> None:
        """Return if the store can be written and read.

        Raises:
            StoreError: it cannot, or it takes longer than SECONDS.
        """
        if time.monotonic() < self._ready_until:
            return
        with move_on_after(SECONDS):
            await to_thread.run_sync(self._write_and_read, limiter=self._thread, abandon_on_cancel=True)
            self._ready_until = time.monotonic() + KEEP_SECONDS
            return
        raise StoreError(f"the store did not answer within {SECONDS} seconds.")

    def _write_and_read(self) -> None:
        probe, store = Episode("probe", "", 0.0), self._memories.store
        with deadline.deadline(SECONDS):
            store.change(SCOPE, add=[probe])
            if not store.get(SCOPE, [probe.id]):
                raise StoreError("the store has lost what was written to it.")
        self._memories.ready()
