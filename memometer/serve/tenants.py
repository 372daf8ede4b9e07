"""Memories by tenant and name in one store: the common basis of the command line, REST, MCP and DSPy tools.

    memories = TenantMemories("sqlite:///memory.db")
    memories.observe("ada", "diary", [NewTurn("I sold the kayak.", speaker="Nadia")])
    memories.recall("ada", "diary", "Who sold a kayak?", budget_tokens=400).text

A memory is a list of turns, stored as episodes in a scope of its own. Memory systems are rebuilt from these turns on
demand, so several processes can share one store. Tenants cannot see each other's memories.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from heapq import nlargest
from typing import Any

from memometer import store
from memometer.memory import Recall
from memometer.models.concurrency_limited import ConcurrencyLimitedEncoder
from memometer.models.encoders import Encoder
from memometer.serve import turn_versions
from memometer.serve.answering import AnswerModel
from memometer.serve.new_turns import NewTurn, complete, new_id, said, zone_named
from memometer.serve.registry import (
    DEFAULT_SYSTEM,
    AlreadyExists,
    InvalidRequest,
    MemoryEntry,
    MemoryRegistry,
    NotFound,
)
from memometer.serve.state_cache import StateCache
from memometer.serve.tenant_limits import ModelTokens, TenantLimits
from memometer.serve.use_counter import UseCounter
from memometer.store import deadline, turn_conversion
from memometer.store.episode import Conflict, Episode, SearchResult, StoreError
from memometer.store.hybrid_scoring import DEFAULT, Weights
from memometer.store.protocol import Consolidated, Store
from memometer.systems import load
from memometer.systems.codebook import Codes
from memometer.token_counters import TokenCounter, counter_for, default_counter

MAX_TURNS = 1000
"""Turns per call of `observe`."""


NO_ENCODER = "none"
"""The name of no encoder: turns are stored without vectors and found by words alone."""


class TenantMemories:
    """The memories of all tenants in a store. Thread-safe; other processes may use the same store.

    Args:
        memory_url: URL of the store (memometer/store/__init__.py).
        encoder: an encoder or its name; None for the default one, `none` for words alone. Loaded at first use.
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
        self.timezone = timezone
        self.encoder_name = encoder if isinstance(encoder, str) or encoder is None else encoder.name
        self.encoder = ConcurrencyLimitedEncoder(encoder)
        self.encoder.on_part = deadline.check
        self.by_words = encoder == NO_ENCODER
        self.count: TokenCounter = counter_for(tokenizer=tokenizer) if tokenizer else default_counter()
        self.now = now
        self._zone = None if timezone is None else zone_named(timezone)
        self._always_encode = always_encode
        self.on_observed: Callable[[str], object] = lambda _: None
        """Called with the scope after each `observe` (memometer/store/consolidation.py)."""
        self.on_deleted: Callable[[], object] = self.store.erase
        """Called after each permanent deletion."""
        self.limits = TenantLimits()
        """What a tenant may do. The command line has no limits."""
        self._model_tokens = ModelTokens()
        self.uses = UseCounter(self.store)
        self.model = AnswerModel(model, api_base=api_base, program=program)
        self.states = StateCache(self.store, self.encoder, self.count, self.model)
        self.registry = MemoryRegistry(
            self.store, now=now, on_clear=self.states.drop, on_cleared=lambda: self.on_deleted()
        )

    def ready(self) -> None:
        """Load the encoder, if there is one. Raises EncoderUnavailable."""
        if not self.by_words:
            self.encoder.ready()

    def close(self) -> None:
        """Write the counted uses and close the store."""
        with suppress(StoreError):  # uses are not worth an error, for example of a read-only store
            self.uses.flush()
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
        ids = [turn.id or new_id(tenant, key, index) for index, turn in enumerate(turns)]
        if len(set(ids)) < len(ids):
            raise InvalidRequest("two turns have the same id; ids must be unique.")

        if self.limits.turns:
            sizes = [self.store.size(entry.scope) for entry in self.registry.entries(tenant)]
            self.limits.check_turns(sum(size.episodes + size.archived for size in sizes), len(turns))

        now = self._local_time()
        metadata = {id: turn.metadata for id, turn in zip(ids, turns, strict=True) if turn.metadata}

        def write(entry: MemoryEntry) -> list[str]:
            for attempt in (1, 2):
                known = {episode.id: episode for episode in self.store.get(entry.scope, ids)}
                given = [complete(turn, id, known.get(id), now=now) for turn, id in zip(turns, ids, strict=True)]
                new = sorted((turn for turn in given if turn.id not in known), key=turn_conversion.at_of)
                if archived := [id for id, episode in known.items() if episode.archived]:
                    self.store.change(entry.scope, restore=archived)
                try:
                    encoder = self._encoder_of(entry)
                    turn_conversion.store_new(
                        self.store, entry.scope, new, encoder=encoder, importance=importance, metadata=metadata
                    )
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
                    self.store,
                    entry.scope,
                    question,
                    budget_tokens,
                    encoder=self._question_encoder,
                    count=self.count,
                    at=at,
                )
            self.uses.add(entry.scope, found.turn_ids)
            return found

        return self.registry.apply(tenant, name, read)

    def retrieve(self, tenant: str, name: str, question: str, *, k: int) -> list[SearchResult]:
        """Return the k best turns by words and meaning, best first, independent of the memory's system."""
        encoder = self._question_encoder
        vector = encoder([question])[0] if encoder else None

        def read(entry: MemoryEntry) -> list[SearchResult]:
            found = self.store.retrieve_similar(
                entry.scope, question, vector, k, at=self.now(), encoder=encoder.name if encoder else ""
            )
            self.uses.add(entry.scope, (hit.episode.id for hit in found))
            return found

        return self.registry.apply(tenant, name, read)

    def answer(self, tenant: str, name: str, question: str, *, budget_tokens: int) -> tuple[str, Recall]:
        """Answer a question with the language model.

        Returns:
            The answer, and the recall that the model read.

        Raises:
            ModelUnavailable: the model cannot be loaded or does not answer.
            NotAllowed: the operator does not allow it, or the tenant's quota is exhausted.
        """
        self.limits.check_answers()
        recall = self.recall(tenant, name, question, budget_tokens=budget_tokens)
        self._model_tokens.spend(tenant, recall.tokens, self.limits.model_tokens, at=self.now())
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
            found = (e for e in self.store.scan(entry.scope) if e.archived and not turn_versions.is_former(e))
            return nlargest(k, found, key=lambda episode: episode.at)

        return self.registry.apply(tenant, name, read)

    def restore(self, tenant: str, name: str, ids: Sequence[str]) -> list[str]:
        """Restore archived turns, so that they are recalled again. Returns the ids that were archived."""

        def write(entry: MemoryEntry) -> list[str]:
            known = self.store.get(entry.scope, list(dict.fromkeys(ids)))
            found = [e.id for e in known if e.archived and not turn_versions.is_former(e)]
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
                former = [id for episode in episodes for id in turn_versions.former_ids(episode)]
                self.store.delete(entry.scope, [*found, *former])
                self.on_deleted()
            elif found:
                self.store.change(entry.scope, archive=found)
            return found

        return self.registry.apply(tenant, name, write)

    def get(self, tenant: str, name: str, id: str) -> Episode:
        """Return a turn as an episode, archived or not.

        Raises:
            NotFound: there is no such turn.
        """

        def read(entry: MemoryEntry) -> list[Episode]:
            return self.store.get(entry.scope, [id])

        found = self.registry.apply(tenant, name, read)
        if not found or turn_versions.is_former(found[0]):
            raise NotFound(f"there is no turn {id!r} in memory {name!r}.")
        return found[0]

    def update(self, tenant: str, name: str, id: str, text: str, *, expected: Episode | None = None) -> Episode:
        """Replace the text of a turn. The former text is kept as an archived version (`history`).

        Args:
            tenant: the owner.
            name: the memory.
            id: the turn.
            text: the new words.
            expected: the turn as the caller has read it; None accepts any.

        Raises:
            NotFound: there is no such turn, or it is archived.
            AlreadyExists: the turn is not the expected one any more.
        """

        def write(entry: MemoryEntry) -> Episode:
            known = self.get(tenant, name, id)
            if known.archived:
                raise NotFound(f"turn {id!r} is archived; restore it first.")
            new = complete(NewTurn(text, *said(known)), id, None, now=self._local_time())
            return turn_versions.replace_text(
                self.store, entry.scope, known, new, encoder=self._encoder_of(entry), expected=expected
            )

        return self.registry.apply(tenant, name, write)

    def history(self, tenant: str, name: str, id: str) -> list[Episode]:
        """Return all versions of a turn, the oldest first; empty if there is no such turn."""

        def read(entry: MemoryEntry) -> list[Episode]:
            with self.store.snapshot():
                known = self.store.get(entry.scope, [id])
                return [*self.store.get(entry.scope, turn_versions.former_ids(known[0])), *known] if known else []

        return self.registry.apply(tenant, name, read)

    def codebook(self, tenant: str, name: str, *, goals: Sequence[str] = ()) -> Codes | None:
        """Return the codebook of a memory's vectors, which is the same for all who ask (memometer/systems/codebook.py).

        Args:
            tenant: the owner.
            name: the memory, of any system.
            goals: texts whose mean vector becomes the goal.

        Returns:
            The codebook; None if the memory has no vectors.
        """

        def read(entry: MemoryEntry) -> Codes | None:
            kind = self.store.vector_format()
            if kind is None:
                return None
            codes = Codes(kind.dimensions, goal_dim=kind.dimensions)
            codes.catch_up(self.store, entry.scope)
            for vector in self.encoder(list(goals)) if goals else ():
                codes.aim(vector)
            return codes if codes.added else None

        return self.registry.apply(tenant, name, read)

    def consolidate(self, tenant: str, name: str, *, weights: Weights = DEFAULT, dry_run: bool = False) -> Consolidated:
        """Merge near-duplicate turns and archive faded ones; with `dry_run`, only say which."""
        self.uses.flush()

        def write(entry: MemoryEntry) -> Consolidated:
            return self.store.consolidate(entry.scope, at=self.now(), weights=weights, dry_run=dry_run)

        return self.registry.apply(tenant, name, write)

    def undo_consolidation(self, tenant: str, name: str) -> list[str]:
        """Restore the turns that the last consolidation archived, and return their ids."""
        return self.registry.apply(tenant, name, lambda entry: self.store.undo_consolidation(entry.scope))

    def delete_tenant(self, tenant: str) -> int:
        """Delete all memories of a tenant permanently; return the number of deleted turns."""
        names = [entry.name for entry in self.registry.entries(tenant)]
        return sum(self.registry.delete(tenant, name) for name in names)

    @property
    def _question_encoder(self) -> Encoder | None:
        return None if self.by_words else self.encoder

    def _encoder_of(self, entry: MemoryEntry) -> Encoder | None:
        system: Any = load(entry.system)
        if self.by_words and entry.system == DEFAULT_SYSTEM:  # it searches by words without one
            return None
        return self.encoder if system.needs_encoder or (self._always_encode and not self.by_words) else None

    def with_zone(self, time: datetime) -> datetime:
        """Return a time with the speakers' zone if it has none."""
        if time.tzinfo is not None:
            return time
        return time.replace(tzinfo=self._zone) if self._zone else time.astimezone()

    def _local_time(self) -> datetime:
        return datetime.fromtimestamp(self.now(), UTC).astimezone(self._zone)
