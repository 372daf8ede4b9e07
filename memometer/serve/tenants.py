"""Memories by tenant and name in one store: the common basis of the command line, REST, MCP and DSPy tools.

    memories = TenantMemories("sqlite:///memory.db")
    memories.observe("ada", "diary", [NewTurn("I sold the kayak.", speaker="Nadia")])
    memories.recall("ada", "diary", "Who sold a kayak?", budget_tokens=400).text

A memory is a list of turns, stored as episodes in a scope of its own. Memory systems are rebuilt from these turns on
demand, so several processes can share one store. Tenants cannot see each other's memories.
"""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from heapq import nlargest
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from memometer import store
from memometer.errors import UserError
from memometer.memory import Recall, Turn
from memometer.models.concurrency_limited import ConcurrencyLimitedEncoder
from memometer.models.encoders import Encoder
from memometer.serve.answering import AnswerModel
from memometer.serve.registry import DEFAULT_SYSTEM, AlreadyExists, InvalidRequest, MemoryEntry, MemoryRegistry
from memometer.serve.state_cache import StateCache
from memometer.store import deadline, turn_conversion
from memometer.store.episode import Conflict, Episode, SearchResult, StoreError
from memometer.store.hybrid_scoring import DEFAULT, Weights
from memometer.store.protocol import Consolidated, Store
from memometer.systems import SYSTEMS, load
from memometer.token_counters import TokenCounter, counter_for, default_counter

MAX_TURNS = 1000
"""Turns per call of `observe`."""

MAX_TURN_BYTES = 2**20
"""UTF-8 bytes of a turn."""


@dataclass(frozen=True)
class NewTurn:
    """A turn to store. Missing fields get defaults: the current time, a session per day, a random id."""

    text: str
    speaker: str = "user"
    said_at: datetime | None = None
    session: int | None = None
    caption: str | None = None
    id: str | None = None


class NotAllowed(UserError, PermissionError):
    """The operator does not allow it, or a quota is exhausted."""


@dataclass(frozen=True)
class TenantLimits:
    """What a tenant may do.

    Args:
        turns: turns of all its memories, archived ones included; 0 for no limit.
        systems: memory systems that it may create; None for all.
        answers: whether `answer`, and systems that write with a model, may spend the operator's money.
    """

    turns: int = 0
    systems: frozenset[str] | None = None
    answers: bool = True


class TenantMemories:
    """The memories of all tenants in a store. Thread-safe; other processes may use the same store.

    Args:
        memory_url: URL of the store (memometer/store/__init__.py).
        encoder: an encoder or its name; None for the default one. Loaded at first use.
        tokenizer: tokenizer that budgets are counted with (memometer/token_counters.py).
        model: model of `answer` and of systems that write with a model; None for the default one. Loaded at first use.
        api_base: URL of an OpenAI-compatible server for `model`.
        program: program file with the prompt of `answer`; None for the one that the model was trained with.
        always_encode: store a vector with every turn. If False, only turns of systems that need an encoder get one,
            and `retrieve` finds the others by words alone.
        timezone: name of the speakers' time zone, such as Pacific/Auckland; None for that of this machine. It decides
            the date of turns without a time.
        now: returns the current time in Unix seconds.
    """

    def __init__(
        self,
        memory_url: str,
        *,
        encoder: Encoder | str | None = None,
        tokenizer: str | None = None,
        model: str | None = None,
        api_base: str | None = None,
        program: str | None = None,
        always_encode: bool = True,
        timezone: str | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.memory_url = memory_url
        self.store: Store = store.opened(memory_url)
        self.encoder = ConcurrencyLimitedEncoder(encoder)
        self.encoder.on_part = deadline.check
        self.count: TokenCounter = counter_for(tokenizer=tokenizer) if tokenizer else default_counter()
        self.now = now
        self._zone = None if timezone is None else _zone(timezone)
        self._always_encode = always_encode
        self.on_observed: Callable[[str], object] = lambda _: None
        """Called with the scope after each `observe` (memometer/store/consolidation.py)."""
        self.on_deleted: Callable[[], object] = self.store.erase
        """Called after each permanent deletion."""
        self.limits = TenantLimits()
        """What a tenant may do. The command line has no limits."""
        self._uses: dict[str, Counter[str]] = {}
        self._uses_lock = threading.Lock()
        self.model = AnswerModel(model, api_base=api_base, program=program)
        self.states = StateCache(self.store, self.encoder, self.count, self.model)
        self.registry = MemoryRegistry(
            self.store, now=now, on_clear=self.states.drop, on_cleared=lambda: self.on_deleted()
        )

    def close(self) -> None:
        """Write the counted uses and close the store."""
        with suppress(StoreError):  # uses are not worth an error, for example of a read-only store
            self.flush_uses()
        store.close(self.memory_url)

    def observe(
        self, tenant: str, name: str, turns: Sequence[NewTurn], *, key: str | None = None, importance: float = 0.5
    ) -> list[str]:
        """Store turns in time order. They are durable when this returns.

        Args:
            tenant: the owner.
            name: the memory.
            turns: at most MAX_TURNS.
            key: idempotency key. Missing ids are derived from it, so a repeated request stores nothing again.
            importance: from 0 to 1, for the ranking.

        Returns:
            The ids, in the order of `turns`.

        Raises:
            NotFound: there is no memory of this name.
            AlreadyExists: an id or the key belongs to other content.
            InvalidRequest: there are too many turns, a turn is too long, or two ids are equal.
        """
        if len(turns) > MAX_TURNS:
            raise InvalidRequest(f"got {len(turns):,} turns; send at most {MAX_TURNS:,} at once.")
        ids = [turn.id or _new_id(tenant, key, index) for index, turn in enumerate(turns)]
        if len(set(ids)) < len(ids):
            raise InvalidRequest("two turns have the same id; ids must be unique.")

        self._check_turns(tenant, len(turns))

        def write(entry: MemoryEntry) -> list[str]:
            for attempt in (1, 2):
                known = {episode.id: episode for episode in self.store.get(entry.scope, ids)}
                complete = [self._turn(turn, id, known.get(id)) for turn, id in zip(turns, ids, strict=True)]
                new = sorted((turn for turn in complete if turn.id not in known), key=turn_conversion.at_of)
                if archived := [id for id, episode in known.items() if episode.archived]:
                    self.store.change(entry.scope, restore=archived)
                try:
                    encoder = self._encoder_of(entry)
                    turn_conversion.store_new(self.store, entry.scope, new, encoder=encoder, importance=importance)
                    break
                except Conflict as error:  # the same request ran at the same time; the next attempt sees its turns
                    if attempt == 2:
                        raise AlreadyExists(str(error)) from error
            self.on_observed(entry.scope)
            return ids

        return self.registry.apply(tenant, name, write)

    def recall(self, tenant: str, name: str, question: str, *, budget_tokens: int, at: float | None = None) -> Recall:
        """Return the text that the memory's system shows for a question.

        Args:
            tenant: the owner.
            name: the memory.
            question: any text.
            budget_tokens: upper limit of `Recall.tokens`.
            at: time of the question in Unix seconds; later turns are not recalled. None recalls from all turns.
        """

        def read(entry: MemoryEntry) -> Recall:
            if entry.system != DEFAULT_SYSTEM:
                found = self.states.recall(entry.scope, entry.system, question, budget_tokens, at=at)
            else:
                found = turn_conversion.recall(
                    self.store, entry.scope, question, budget_tokens, encoder=self.encoder, count=self.count, at=at
                )
            self._count_uses(entry.scope, found.turn_ids)
            return found

        return self.registry.apply(tenant, name, read)

    def retrieve(self, tenant: str, name: str, question: str, *, k: int) -> list[SearchResult]:
        """Return the k best turns by words and meaning, best first, independent of the memory's system."""
        vector = self.encoder([question])[0]

        def read(entry: MemoryEntry) -> list[SearchResult]:
            found = self.store.retrieve_similar(
                entry.scope, question, vector, k, at=self.now(), encoder=self.encoder.name
            )
            self._count_uses(entry.scope, (hit.episode.id for hit in found))
            return found

        return self.registry.apply(tenant, name, read)

    def answer(self, tenant: str, name: str, question: str, *, budget_tokens: int) -> tuple[str, Recall]:
        """Answer a question with the language model.

        Returns:
            The answer, and the recall that the model read.

        Raises:
            ModelUnavailable: the model cannot be loaded or does not answer.
        """
        if not self.limits.answers:
            raise NotAllowed("this service does not answer with a language model; use recall.")
        recall = self.recall(tenant, name, question, budget_tokens=budget_tokens)
        return self.model.read(recall.text, question), recall

    def newest(self, tenant: str, name: str, *, k: int, before: tuple[float, str] | None = None) -> list[Episode]:
        """Return the k newest turns as episodes, newest first.

        Args:
            tenant: the owner.
            name: the memory.
            k: the number of turns.
            before: (time, id) of the last turn of the previous page.
        """

        def read(entry: MemoryEntry) -> list[Episode]:
            with self.store.snapshot():
                rows = self.store.newest(entry.scope, k, before)
                return self.store.get(entry.scope, self.store.ids(entry.scope, rows))

        return self.registry.apply(tenant, name, read)

    def archived(self, tenant: str, name: str, *, k: int) -> list[Episode]:
        """Return the k newest archived turns as episodes, newest first."""

        def read(entry: MemoryEntry) -> list[Episode]:
            found = (episode for episode in self.store.scan(entry.scope) if episode.archived)
            return nlargest(k, found, key=lambda episode: episode.at)

        return self.registry.apply(tenant, name, read)

    def restore(self, tenant: str, name: str, ids: Sequence[str]) -> list[str]:
        """Restore archived turns, so that they are recalled again. Returns the ids that were archived."""

        def write(entry: MemoryEntry) -> list[str]:
            found = [e.id for e in self.store.get(entry.scope, list(dict.fromkeys(ids))) if e.archived]
            if found:
                self.store.change(entry.scope, restore=found)
            return found

        return self.registry.apply(tenant, name, write)

    def forget(self, tenant: str, name: str, ids: Sequence[str], *, permanent: bool = False) -> list[str]:
        """Archive turns, which excludes them from recall, or delete them permanently.

        Returns:
            The ids that existed.
        """

        def write(entry: MemoryEntry) -> list[str]:
            episodes = self.store.get(entry.scope, list(dict.fromkeys(ids)))
            found = [episode.id for episode in episodes if permanent or not episode.archived]
            if permanent:
                self.store.delete(entry.scope, found)
                self.on_deleted()
            elif found:
                self.store.change(entry.scope, archive=found)
            return found

        return self.registry.apply(tenant, name, write)

    def consolidate(self, tenant: str, name: str, *, weights: Weights = DEFAULT, dry_run: bool = False) -> Consolidated:
        """Merge near-duplicate turns and archive faded ones; with `dry_run`, only say which."""
        self.flush_uses()

        def write(entry: MemoryEntry) -> Consolidated:
            return self.store.consolidate(entry.scope, at=self.now(), weights=weights, dry_run=dry_run)

        return self.registry.apply(tenant, name, write)

    def undo_consolidation(self, tenant: str, name: str) -> list[str]:
        """Restore the turns that the last consolidation archived, and return their ids."""
        return self.registry.apply(tenant, name, lambda entry: self.store.undo_consolidation(entry.scope))

    def check_system(self, system: str) -> None:
        """Check that a tenant may create a memory of a system.

        Raises:
            NotAllowed: the operator does not allow it.
        """
        allowed = self.limits.systems
        if allowed is not None and system not in allowed:
            raise NotAllowed(
                f"memories of system {system!r} are not allowed here; allowed: {', '.join(sorted(allowed))}."
            )
        kind: Any = load(system) if system in SYSTEMS else None
        if kind and kind.needs_model and not self.limits.answers:
            raise NotAllowed(f"system {system!r} writes with a language model, which this service does not allow.")

    def _check_turns(self, tenant: str, added: int) -> None:
        if self.limits.turns:
            sizes = [self.store.size(entry.scope) for entry in self.registry.entries(tenant)]
            held = sum(size.episodes + size.archived for size in sizes)
            if held + added > self.limits.turns:
                raise NotAllowed(f"the quota of {self.limits.turns:,} turns is exhausted; delete turns permanently.")

    def delete_tenant(self, tenant: str) -> int:
        """Delete all memories of a tenant permanently; return the number of deleted turns."""
        names = [entry.name for entry in self.registry.entries(tenant)]
        return sum(self.registry.delete(tenant, name) for name in names)

    def flush_uses(self) -> None:
        """Write the uses that were counted since the last call."""
        with self._uses_lock:
            uses, self._uses = self._uses, {}
        for scope, counts in uses.items():
            if self.store.size(scope).episodes:
                self.store.change(scope, uses=counts)

    def _count_uses(self, scope: str, ids: Iterable[str]) -> None:
        with self._uses_lock:
            self._uses.setdefault(scope, Counter()).update(ids)

    def _encoder_of(self, entry: MemoryEntry) -> Encoder | None:
        system: Any = load(entry.system)
        return self.encoder if self._always_encode or system.needs_encoder else None

    def with_zone(self, time: datetime) -> datetime:
        """Return a time with the speakers' zone if it has none."""
        if time.tzinfo is not None:
            return time
        return time.replace(tzinfo=self._zone) if self._zone else time.astimezone()

    def _local_time(self) -> datetime:
        return datetime.fromtimestamp(self.now(), UTC).astimezone(self._zone)

    def _turn(self, new: NewTurn, id: str, known: Episode | None) -> Turn:
        """Complete a new turn, and check it against the stored turn with the same id."""
        said_at = new.said_at or (turn_conversion.turn_of(known).said_at if known else self._local_time())
        if not 1 < said_at.year < 9999:
            raise InvalidRequest(f"said_at is in the year {said_at.year}; expected a year from 2 to 9998.")
        session = said_at.toordinal() if new.session is None else new.session
        turn = Turn(id, new.speaker, new.text, session, said_at, new.caption)
        try:
            size = len(turn.line.encode())
        except UnicodeEncodeError as error:
            raise InvalidRequest("text contains an unpaired surrogate; send valid UTF-8.") from error
        if size > MAX_TURN_BYTES:
            raise InvalidRequest(f"a turn has {size:,} bytes; the limit is {MAX_TURN_BYTES:,}.")
        at = None if new.said_at is None else turn_conversion.at_of(turn)
        if known and (known.text != turn.line.rstrip("\n") or at not in (None, known.at)):
            raise AlreadyExists(f"id {id!r} or its idempotency key belongs to another turn; use a new one.")
        return turn


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InvalidRequest(f"unknown time zone {name!r}; use a name such as Europe/Berlin or UTC.") from error


def _new_id(tenant: str, key: str | None, index: int) -> str:
    if key is None:
        return uuid.uuid4().hex[:16]
    digest = hashlib.sha256(f"{tenant}\0{key}".encode()).hexdigest()
    return f"{digest[:24]}.{index}"
