"""Admission of requests to bounded pools of work, in which every tenant has a limited share.

A request waits first for one of its tenant's places in the pool, then for a free slot. Both queues are first in, first
out. Therefore a request waits for at most `per_tenant` requests of each other tenant, however many they send.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from anyio import CapacityLimiter

SEARCH, MODEL, BULK, MCP = "search", "model", "bulk", "mcp"


@dataclass(frozen=True)
class Pool:
    """Limits of one kind of work.

    Args:
        slots: requests in work at a time.
        per_tenant: of these, requests of one tenant.
        waiting: requests of one tenant that may wait.
        seconds: deadline of a request, from its admission.
    """

    slots: int
    per_tenant: int
    waiting: int
    seconds: float


POOLS: Mapping[str, Pool] = {
    SEARCH: Pool(slots=8, per_tenant=1, waiting=500, seconds=30),  # search, recall, storing of a few turns
    MODEL: Pool(slots=16, per_tenant=4, waiting=50, seconds=120),  # calls of a language model
    BULK: Pool(slots=2, per_tenant=1, waiting=20, seconds=600),  # exports, imports, consolidation, many turns
    MCP: Pool(slots=8, per_tenant=2, waiting=100, seconds=120),  # tools, of which some may call a model
}
"""The pools by kind of work. Searches compute, so more than one of a tenant would only take time from the others."""

SINGLE_TENANT_POOLS = {kind: replace(pool, per_tenant=pool.slots) for kind, pool in POOLS.items()}
"""The pools of a service without tokens."""


class TooManyRequests(Exception):
    """Too many requests of the tenant wait."""


class Admission:
    """The pools of a service.

    Args:
        pools: limits by kind of work.
    """

    def __init__(self, pools: Mapping[str, Pool] = POOLS) -> None:
        self.pools = pools
        self._slots: dict[str, CapacityLimiter] = {}
        self._places: dict[tuple[str, str], CapacityLimiter] = {}
        self._requests: Counter[tuple[str, str]] = Counter()

    @property
    def threads(self) -> int:
        """Threads that all pools together need."""
        return sum(pool.slots for pool in self.pools.values())

    def waiting(self, kind: str) -> int:
        """Return the number of requests that wait for a slot of a pool."""
        in_pool = sum(count for (of, _), count in self._requests.items() if of == kind)
        return in_pool - (self._slots[kind].borrowed_tokens if kind in self._slots else 0)

    async def acquire(self, kind: str, tenant: str) -> Callable[[], None]:
        """Wait for a slot.

        Returns:
            A function that releases the slot; further calls of it do nothing.

        Raises:
            TooManyRequests: too many requests of the tenant wait already.
        """
        pool, key, borrower = self.pools[kind], (kind, tenant), object()
        if self._requests[key] >= pool.per_tenant + pool.waiting:
            raise TooManyRequests
        slots = self._slots.setdefault(kind, CapacityLimiter(pool.slots))
        places = self._places.setdefault(key, CapacityLimiter(pool.per_tenant))
        self._requests[key] += 1
        held: list[CapacityLimiter] = []

        is_released = False

        def release() -> None:
            nonlocal is_released
            if is_released:
                return
            is_released = True
            while held:
                held.pop().release_on_behalf_of(borrower)
            self._requests[key] -= 1
            if not self._requests[key]:
                del self._requests[key], self._places[key]

        try:
            for limiter in (places, slots):
                await limiter.acquire_on_behalf_of(borrower)
                held.append(limiter)
        except BaseException:  # the client has gone, or the service stops
            release()
            raise
        return release
