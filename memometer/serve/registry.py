"""The registry of memories: which tenant has which memories, and the scope of each in the store."""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from memometer.errors import UserError
from memometer.store.episode import Episode
from memometer.store.protocol import CONSOLIDATIONS, Store
from memometer.systems import SYSTEMS, current_name, load

DEFAULT_MEMORY = "default"
DEFAULT_SYSTEM = "episodic"
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""Valid names of tenants and memories."""

ORPHAN_AGE_SECONDS = 86_400
"""Minimum age of an unlisted scope before it is deleted; a younger one may belong to an import in progress."""


T = TypeVar("T")


class NotFound(UserError, LookupError):
    """A memory, turn or page does not exist."""


class AlreadyExists(UserError, ValueError):
    """A name, id or idempotency key is already in use for something else."""


class InvalidRequest(UserError, ValueError):
    """A request is outside the allowed values."""


@dataclass(frozen=True)
class MemoryEntry:
    """A memory as it is registered.

    Attributes:
        name: unique within the tenant.
        system: the memory system that recalls from it.
        created_at: Unix seconds.
        scope: the scope of its turns in the store; it changes with every import.
    """

    name: str
    system: str
    created_at: float
    scope: str


class MemoryRegistry:
    """The memories of all tenants, registered in their store. Thread-safe; other processes may use the same store.

    Args:
        store: holds the registry and the turns.
        now: returns the current time in Unix seconds.
        on_clear: called with each scope before it is deleted.
        on_cleared: called after a deletion.
    """

    def __init__(
        self,
        store: Store,
        *,
        now: Callable[[], float],
        on_clear: Callable[[str], object],
        on_cleared: Callable[[], object],
    ) -> None:
        self._store = store
        self._now = now
        self._on_clear = on_clear
        self._on_cleared = on_cleared
        self._lock = threading.Lock()  # some stores cannot replace an entry in one step
        self._entries: dict[str, tuple[int, dict[str, MemoryEntry]]] = {}

    def entries(self, tenant: str) -> list[MemoryEntry]:
        """Return the memories of a tenant, sorted by name."""
        return sorted(self._of(tenant).values(), key=lambda entry: entry.name)

    def find(self, tenant: str, name: str) -> MemoryEntry:
        """Return a memory; the default one is created if it is missing.

        Raises:
            NotFound: there is no memory of this name.
        """
        entry = self._of(tenant).get(name)
        if entry is None and name == DEFAULT_MEMORY:
            entry, _ = self.create(tenant, name)
        if entry is None:
            raise NotFound(f"there is no memory {name!r}; add a turn to create it, or list the existing memories.")
        return entry

    def uses_model(self, tenant: str, name: str) -> bool:
        """Return True if a memory's system is known to write with a language model. It does not ask the store."""
        _, entries = self._entries.get(tenant, (0, {}))
        if name not in entries:
            return False
        system: Any = load(entries[name].system)
        return bool(system.needs_model)

    def create(self, tenant: str, name: str, *, system: str = DEFAULT_SYSTEM) -> tuple[MemoryEntry, bool]:
        """Create a memory unless it exists.

        Returns:
            The memory, and whether it is new.

        Raises:
            AlreadyExists: it exists with another system.
            InvalidRequest: the name or the system is not valid.
        """
        entry = self._new_entry(tenant, name, system)
        with self._lock, self._store.transaction():
            self._store.change(_registry(tenant))  # locks the registry until the transaction ends
            if episodes := self._store.get(_registry(tenant), [name]):
                existing = _entry_of(episodes[0])
                if existing.system != system:
                    raise AlreadyExists(f"memory {name!r} already exists with system {existing.system}, not {system}.")
                return existing, False
            self._store.change(_registry(tenant), add=[_episode_of(entry)])
        return entry, True

    def ensure(self, tenant: str, name: str, *, system: str = DEFAULT_SYSTEM) -> MemoryEntry:
        """Return a memory; create it with `system` if it is missing."""
        return self._of(tenant).get(name) or self.create(tenant, name, system=system)[0]

    def delete(self, tenant: str, name: str) -> int:
        """Delete a memory and its turns permanently.

        Returns:
            The number of deleted turns.

        Raises:
            NotFound: there is no memory of this name.
        """
        self.find(tenant, name)
        with self._lock, self._store.transaction():
            self._store.change(_registry(tenant))  # locks the registry until the transaction ends
            episodes = self._store.get(_registry(tenant), [name])
            self._store.delete(_registry(tenant), [name])
        return sum(self._clear(_entry_of(episode).scope) for episode in episodes)

    def replace(self, tenant: str, name: str, *, system: str, fill: Callable[[str], object]) -> MemoryEntry:
        """Create a memory, or replace the existing one, in one step.

        Turns that are observed in the old memory during `fill` are lost with it.

        Args:
            tenant: the owner.
            name: the name of the memory.
            system: its memory system.
            fill: stores all turns in the given scope. If it raises, the old memory stays.
        """
        entry = self._new_entry(tenant, name, system)
        try:
            fill(entry.scope)
            with self._lock:
                old = self._store.replace(_registry(tenant), _episode_of(entry))
        except BaseException:  # includes Ctrl-C
            self._clear(entry.scope)
            raise
        if old:
            self._clear(_entry_of(old).scope)
        return entry

    def remove_orphans(self) -> int:
        """Delete scopes that a killed import or deletion left behind; return the number of turns in them."""
        scopes = self._store.scopes()
        listed = {entry.scope for scope in scopes if "/" not in scope for entry in self._registered(scope)}
        orphans = {s for s in scopes if re.fullmatch(rf"tenant:{NAME_PATTERN}/{NAME_PATTERN}/\d+-\w+", s)} - listed
        newest = self._now() - ORPHAN_AGE_SECONDS
        return sum(self._clear(s) for s in orphans if int(s.rpartition("/")[2].split("-")[0]) < newest)

    def apply(self, tenant: str, name: str, action: Callable[[MemoryEntry], T]) -> T:
        """Run an action on a memory; repeat it if the memory was replaced meanwhile.

        The result therefore comes from one memory, and writes go to the current one.
        """
        while True:
            entry = self.find(tenant, name)
            result = action(entry)
            if self._of(tenant).get(name) == entry:
                return result
            self._clear(entry.scope)  # remove writes to the replaced memory

    def _of(self, tenant: str) -> dict[str, MemoryEntry]:
        registry = _registry(tenant)
        with self._lock:
            changes = self._store.size(registry).changes
            cached = self._entries.get(tenant)
            if cached is None or cached[0] != changes:
                cached = changes, {entry.name: entry for entry in self._registered(registry)}
                self._entries[tenant] = cached
            return cached[1]

    def _registered(self, registry: str) -> list[MemoryEntry]:
        if not registry.startswith("tenant:"):
            return []
        return [_entry_of(episode) for episode in self._store.scan(registry)]

    def _clear(self, scope: str) -> int:
        """Delete a scope in batches, so that other requests can run in between; return the number of turns."""
        self._on_clear(scope)
        removed = 0
        while batch := [episode.id for episode in islice(self._store.scan(scope), 500)]:
            removed += self._store.delete(scope, batch)
        if removed:
            self._store.delete(CONSOLIDATIONS, [scope])
            self._on_cleared()
        return removed

    def _new_entry(self, tenant: str, name: str, system: str) -> MemoryEntry:
        check_name("tenant", tenant)
        check_name("memory", name)
        if system not in SYSTEMS:
            raise InvalidRequest(f"unknown memory system {system!r}; known: {', '.join(sorted(SYSTEMS))}.")
        now = self._now()
        return MemoryEntry(name, system, now, f"{_registry(tenant)}/{name}/{int(now)}-{uuid.uuid4().hex[:12]}")


def check_name(kind: str, name: str) -> None:
    """Check the name of a tenant or memory.

    Raises:
        InvalidRequest: the name is not valid.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidRequest(
            f"invalid {kind} name {name!r}; use up to 64 letters, digits, dots, dashes and underscores, starting with "
            "a letter or digit."
        )


def _registry(tenant: str) -> str:
    """The scope that lists a tenant's memories."""
    return f"tenant:{tenant}"


def _episode_of(entry: MemoryEntry) -> Episode:
    return Episode(entry.name, "", entry.created_at, details={"system": entry.system, "scope": entry.scope})


def _entry_of(episode: Episode) -> MemoryEntry:
    return MemoryEntry(
        episode.id, current_name(str(episode.details["system"])), episode.at, str(episode.details["scope"])
    )
