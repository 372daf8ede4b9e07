"""Memories by tenant and name, kept in a store: what the service, the MCP server and the command line have in common.

    memories = NamedMemories("sqlite:///memory.db")
    memories.observe("ada", "diary", [Said("I sold the kayak.", speaker="Nadia")])     # there when it returns
    memories.recall("ada", "diary", "Who sold a kayak?", budget_tokens=400).text

A memory is the turns that it was told, each an episode in a scope of its own. What a system makes of them is made from
them again whenever it is asked for, so that processes share one store and nothing is lost with one. A tenant sees
nothing of another's.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TypeVar

from memometer import store
from memometer.budget import Recall, TokenCounter, Turn
from memometer.cartridge.container import CartridgeError
from memometer.models.concurrency_limited import Gated
from memometer.models.encoders import Encoder, EncoderUnavailable
from memometer.serve.answering import Answers, NoModel
from memometer.serve.state_cache import States
from memometer.store import turn_conversion
from memometer.store.episode import Conflict, Episode, ScopeSize, SearchResult, StoreError
from memometer.store.protocol import Consolidated, Store
from memometer.systems import SYSTEMS
from memometer.token_counters import counter_for

DEFAULT_NAME = "default"
DEFAULT_SYSTEM = "episodic"
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""What tenants and memories may be called."""

MOST_AT_ONCE = 1000
"""Turns observed, or episodes asked for, at a time."""

MOST_TEXT_BYTES = 2**20
"""Of a turn."""

SWEEP_AFTER_SECONDS = 86_400
"""What is in no list for so long was left behind; before, it may be on its way."""

T = TypeVar("T")


class NotThere(LookupError):
    """Nothing has that name; the message is one sentence for the user."""


class Taken(ValueError):
    """A name or an id belongs to something else already; the message is one sentence for the user."""


class Refused(ValueError):
    """What is asked cannot be done; the message is one sentence for the user."""


TOLD = (NotThere, Taken, Refused, NoModel, CartridgeError, EncoderUnavailable, StoreError)
"""What a caller can mend, or is to be told: the message is one sentence."""


@dataclass(frozen=True)
class Named:
    """A memory. `created_at` is in Unix seconds, `scope` is where its turns are: another one after an import."""

    name: str
    system: str
    created_at: float
    scope: str


@dataclass(frozen=True)
class Said:
    """What somebody wants remembered. What is None is filled in: the time by the clock, the session by the day, the id
    by chance, or from the request's key, so that repeating a request repeats nothing."""

    text: str
    speaker: str = "user"
    said_at: datetime | None = None
    session: int | None = None
    caption: str | None = None
    id: str | None = None


class NamedMemories:
    """Safe in several threads, and beside other processes on the same store.

    Args:
        memory_url: of the store.
        encoder: makes the vectors (memometer/models/encoders.py); None for the default one, loaded at first use.
        tokenizer: counts budgets (memometer/token_counters.py).
        model: reads memories for `answer` and writes those of systems that a model writes
        (memometer/models/resolve_models.py);
            None for the default one, loaded at first use.
        api_base: of that model.
        now: the time, in Unix seconds.
    """

    def __init__(
        self,
        memory_url: str,
        *,
        encoder: Encoder | str | None = None,
        tokenizer: str | None = None,
        model: str | None = None,
        api_base: str | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.memory_url = memory_url
        self.store: Store = store.opened(memory_url)
        self.encoder = Gated(encoder)
        self.count: TokenCounter = counter_for(tokenizer=tokenizer)
        self.now = now
        self.observed: Callable[[str], object] = lambda _: None
        """Called with the scope of what was observed (memometer/store/consolidation.py)."""
        self._answers = Answers(model, api_base=api_base)
        self.states = States(self.store, self.encoder, self.count, self._answers)
        self._listing = threading.Lock()  # not every store can replace what is listed in one step
        self._known: dict[str, tuple[int, dict[str, Named]]] = {}

    def close(self) -> None:
        store.close(self.memory_url)

    # ------------------------------------------------------------ which there are

    def all(self, tenant: str) -> list[Named]:
        """A tenant's memories, by name."""
        return sorted(self._of(tenant).values(), key=lambda named: named.name)

    def find(self, tenant: str, name: str) -> Named:
        """The memory of a name. The default one is made where there is none; of others raises NotThere."""
        found = self._of(tenant).get(name)
        if found is None and name == DEFAULT_NAME:
            found, _ = self.create(tenant, name)
        if found is None:
            raise NotThere(f"there is no memory {name!r}; add something to it, or list those that there are.")
        return found

    def create(self, tenant: str, name: str, *, system: str = DEFAULT_SYSTEM) -> tuple[Named, bool]:
        """The memory of a name, and whether it is new.

        Raises Taken where there is one of another system, Refused for a name or a system that cannot be.
        """
        named = self._fresh(tenant, name, system)
        with self._listing, self.store.transaction():
            self.store.change(_registry(tenant))  # from here on nobody else changes it
            if entries := self.store.get(_registry(tenant), [name]):
                found = _named(entries[0])
                if found.system != system:
                    raise Taken(f"there is a memory {name!r} already, and its system is {found.system}, not {system}.")
                return found, False
            self.store.change(_registry(tenant), add=[_entry(named)])
        return named, True

    def ensure(self, tenant: str, name: str) -> Named:
        """The memory of a name, made where there is none."""
        return self._of(tenant).get(name) or self.create(tenant, name)[0]

    def delete(self, tenant: str, name: str) -> int:
        """Remove a memory with all that it holds, for good. How many turns there were."""
        self.find(tenant, name)
        with self._listing, self.store.transaction():
            self.store.change(_registry(tenant))  # from here on nobody exchanges it
            listed = self.store.get(_registry(tenant), [name])
            self.store.delete(_registry(tenant), [name])
        return sum(self._clear(_named(entry).scope) for entry in listed)

    def exchange(self, tenant: str, name: str, *, system: str, fill: Callable[[str], object]) -> Named:
        """Put a memory in the place of the one of a name, or of none, in one step: `fill` has stored all of it in the
        scope that it is told. What that raises leaves everything as it was.

        What is observed while it fills goes into the old one, and with it.
        """
        named = self._fresh(tenant, name, system)
        try:
            fill(named.scope)
            with self._listing:
                old = self.store.replace(_registry(tenant), _entry(named))
        except BaseException:  # Ctrl-C too must leave everything as it was
            self._clear(named.scope)
            raise
        if old:
            self._clear(_named(old).scope)
        return named

    def sweep(self) -> int:
        """Remove what exchanges and removals that were killed have left behind. How many turns there were."""
        kept = {named.scope for scope in self.store.scopes() if scope.count("/") == 0 for named in self._listed(scope)}
        left = [scope for scope in self.store.scopes() if re.fullmatch(rf"tenant:{NAME}/{NAME}/\d+-\w+", scope)]
        young = self.now() - SWEEP_AFTER_SECONDS
        return sum(self._clear(s) for s in left if s not in kept and int(s.rpartition("/")[2].split("-")[0]) < young)

    # ------------------------------------------------------------ what they hold

    def observe(
        self, tenant: str, name: str, said: Sequence[Said], *, key: str | None = None, importance: float = 0.5
    ) -> list[str]:
        """Remember, in the order of time; all is there when it returns. The ids.

        Args:
            key: of the request. The ids that are not given follow from it, so that a request that is repeated, by a
                client that saw no reply, is remembered once.

        Raises Taken where an id or the key belongs to something else, Refused for too many at once.
        """
        if len(said) > MOST_AT_ONCE:
            raise Refused(f"{len(said):,} turns are too many at once; send up to {MOST_AT_ONCE:,}.")
        ids = [one.id or _id(tenant, key, place) for place, one in enumerate(said)]
        if len(set(ids)) < len(ids):
            raise Refused("two turns have one id; give each its own.")

        def write(named: Named) -> list[str]:
            for last in (False, True):
                known = {episode.id: episode for episode in self.store.get(named.scope, ids)}
                turns = [self._turn(one, id, known.get(id)) for one, id in zip(said, ids, strict=True)]
                turns.sort(key=turn_conversion.at_of)
                size = self.store.size(named.scope)
                try:
                    turn_conversion.observe(
                        self.store,
                        named.scope,
                        turns,
                        encoder=self.encoder,
                        number=size.episodes + size.archived,
                        importance=importance,
                    )
                    break
                except Conflict as error:  # the same request at the same time
                    if last:
                        raise Taken(str(error)) from error
            self.observed(named.scope)
            return ids

        return self.on(tenant, name, write)

    def recall(self, tenant: str, name: str, question: str, *, budget_tokens: int, at: float | None = None) -> Recall:
        """What the memory's system shows for a question; `tokens <= budget_tokens`, always."""

        def read(named: Named) -> Recall:
            if named.system != DEFAULT_SYSTEM:
                return self.states.recall(named.scope, named.system, question, budget_tokens)
            return turn_conversion.recall(
                self.store, named.scope, question, budget_tokens, encoder=self.encoder, count=self.count, at=at
            )

        return self.on(tenant, name, read)

    def retrieve(self, tenant: str, name: str, question: str, *, k: int, at: float | None = None) -> list[SearchResult]:
        """The k turns that fit best by words and meaning, the best first, whatever the memory's system."""
        vector = self.encoder([question])[0]
        when = self.now() if at is None else at

        def read(named: Named) -> list[SearchResult]:
            return self.store.retrieve_similar(named.scope, question, vector, k, at=when)

        return self.on(tenant, name, read)

    def answer(self, tenant: str, name: str, question: str, *, budget_tokens: int) -> tuple[str, Recall]:
        """What the model answers from what the memory shows."""
        recall = self.recall(tenant, name, question, budget_tokens=budget_tokens)
        return self._answers.read(recall.text, question), recall

    def newest(self, tenant: str, name: str, *, k: int, before: tuple[float, str] | None = None) -> list[Episode]:
        """The k latest turns, as episodes; those after a given one (its time and id) in this order."""

        def read(named: Named) -> list[Episode]:
            with self.store.snapshot():
                rows = self.store.newest(named.scope, k, before)
                return self.store.get(named.scope, self.store.ids(named.scope, rows))

        return self.on(tenant, name, read)

    def forget(self, tenant: str, name: str, ids: Sequence[str], *, for_good: bool = False) -> list[str]:
        """Archive turns, so that nothing finds them, or remove them for good. Those that there were."""

        def write(named: Named) -> list[str]:
            found = [e.id for e in self.store.get(named.scope, list(dict.fromkeys(ids))) if for_good or not e.archived]
            if for_good:
                self.store.delete(named.scope, found)
            elif found:
                self.store.change(named.scope, archive=found)
            return found

        return self.on(tenant, name, write)

    def consolidate(self, tenant: str, name: str, *, at: float | None = None) -> Consolidated:
        """Merge near-duplicates and archive what is forgotten."""
        when = self.now() if at is None else at
        return self.on(tenant, name, lambda named: self.store.consolidate(named.scope, at=when))

    def size(self, tenant: str, name: str) -> ScopeSize:
        return self.store.size(self.find(tenant, name).scope)

    # ------------------------------------------------------------ inside

    def on(self, tenant: str, name: str, act: Callable[[Named], T]) -> T:
        """Act on a memory, and again where it was exchanged for another in the meantime: what is read comes from one
        memory, and what is written goes into the one that is there."""
        while True:
            named = self.find(tenant, name)
            result = act(named)
            if self._of(tenant).get(name) == named:
                return result
            self._clear(named.scope)  # nobody will look there again

    def _of(self, tenant: str) -> dict[str, Named]:
        scope = _registry(tenant)
        with self._listing:
            changes = self.store.size(scope).changes
            known = self._known.get(tenant)
            if known is None or known[0] != changes:
                known = changes, {named.name: named for named in self._listed(scope)}
                self._known[tenant] = known
            return known[1]

    def _listed(self, registry: str) -> list[Named]:
        return [_named(episode) for episode in self.store.scan(registry)] if registry.startswith("tenant:") else []

    def _clear(self, scope: str) -> int:
        """Remove all that is in a scope, bit by bit, so that others get their turn. How many there were."""
        self.states.drop(scope)
        removed = 0
        while batch := [episode.id for episode in islice(self.store.scan(scope), 500)]:
            removed += self.store.delete(scope, batch)
        return removed

    def _turn(self, one: Said, id: str, known: Episode | None) -> Turn:
        said_at = one.said_at or datetime.fromtimestamp(self.now() if known is None else known.at, UTC)
        if not 1 < said_at.year < 9999:
            raise Refused(f"a turn is of the year {said_at.year}; it may be of the years 2 to 9998.")
        session = said_at.toordinal() if one.session is None else one.session
        turn = Turn(id, one.speaker, one.text, session, said_at, one.caption)
        try:
            size = len(turn.line.encode())
        except UnicodeEncodeError as error:
            raise Refused("a text is no UTF-8: it holds half a character; send it as UTF-8.") from error
        if size > MOST_TEXT_BYTES:
            raise Refused(f"a turn of {size:,} bytes is too long; send up to {MOST_TEXT_BYTES:,} in one.")
        at = None if one.said_at is None else turn_conversion.at_of(turn)
        if known and (known.text != turn.line.rstrip("\n") or at not in (None, known.at)):
            raise Taken(f"another turn has the id {id!r}, or another request had the same key; give this one its own.")
        return turn

    def _fresh(self, tenant: str, name: str, system: str) -> Named:
        check_name("tenant", tenant)
        check_name("memory", name)
        if system not in SYSTEMS:
            raise Refused(f"there is no memory system {system!r}; there are {', '.join(sorted(SYSTEMS))}.")
        now = self.now()
        return Named(name, system, now, f"{_registry(tenant)}/{name}/{int(now)}-{uuid.uuid4().hex[:12]}")


def check_name(what: str, given: str) -> None:
    """Raises Refused for a name that no tenant or memory can have."""
    if not re.fullmatch(NAME, given):
        raise Refused(
            f"no {what} can be called {given!r}; a name is up to 64 letters, digits, dots, dashes and underscores, and "
            "begins with a letter or digit."
        )


def _registry(tenant: str) -> str:
    """The scope in which a tenant's memories are listed."""
    return f"tenant:{tenant}"


def _entry(named: Named) -> Episode:
    return Episode(named.name, "", named.created_at, details={"system": named.system, "scope": named.scope})


def _named(entry: Episode) -> Named:
    return Named(entry.id, str(entry.details["system"]), entry.at, str(entry.details["scope"]))


def _id(tenant: str, key: str | None, place: int) -> str:
    if key is None:
        return uuid.uuid4().hex[:16]
    digest = hashlib.sha256(f"{tenant}\0{key}".encode()).hexdigest()
    return f"{digest[:24]}.{place}"
