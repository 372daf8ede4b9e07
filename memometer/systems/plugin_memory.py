"""A system of the plug-in protocol as a Memory: one search for each question, packed exactly into every budget."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from memometer.budget import pack
from memometer.memory import Item, Memory, Recall, State, Turn
from memometer.systems.connection import Connection
from memometer.systems.plugin import (
    Description,
    PluginError,
    is_verbatim,
    lines_of,
    read_description,
    read_items,
    turn_message,
)
from memometer.token_counters import TokenCounter

GIVE_UP_AFTER = 3
"""A system whose search fails this often in a row takes no further part in the run."""

FIRST_LIMIT = 4.0
"""A first search asks for this many times the number of mean turns that fit the largest budget. Systems that fuse
several rankings need depth: with 1.5, Haystack's hybrid loses about a point on a validation conversation."""

MOST_ITEMS = 100_000

SPARE = 0.02
"""The share of the largest budget that may stay empty before a search is repeated with a larger limit."""

POLL_SECONDS = 0.2
"""Pause before `ready` is called again."""


@dataclass
class PluginState(State):
    """A State whose content is in the system.

    Attributes:
        scope: The name of the memory in the system.
        forgotten: The turns that the system was asked to delete; `turns` holds them still, to see if it shows them.
        started: The value of `Connection.starts` when the scope was opened.
        deadline: When the ingest must be finished, on the monotonic clock.
        searches: Question and asker -> items returned, since the last change.
    """

    scope: str = ""
    started: int = 0
    deadline: float = 0.0
    forgotten: set[str] = field(default_factory=set)
    searches: dict[tuple[str, str], list[Item]] = field(default_factory=dict)


class PluginMemory(Memory[PluginState]):
    """A system that is reached through a connection.

    Args:
        name: The name in messages.
        connection: The connection.
        largest_budget: The largest budget of the run; a search asks for enough items to fill it.
        ingest_seconds: Time limit of the ingest of one conversation, and of the start of the system.
        search_seconds: Time limit of every other call.
        stage: Called with `ingest` or `search` before the system works, so that its model calls are counted apart.
        usage: Stage -> the model calls since the last call, as counts by name.
        count: Counts tokens; see Memory.
    """

    state_type = PluginState
    shows_turns = False

    def __init__(
        self,
        name: str,
        connection: Connection,
        *,
        largest_budget: int,
        ingest_seconds: float = 3600.0,
        search_seconds: float = 120.0,
        stage: Callable[[str], None] = lambda _: None,
        usage: Callable[[str], Mapping[str, int]] = lambda _: {},
        count: TokenCounter | None = None,
    ) -> None:
        super().__init__(count=count)
        self.name = name
        self.connection = connection
        self.largest_budget = largest_budget
        self.ingest_seconds = ingest_seconds
        self.search_seconds = search_seconds
        self.stage = stage
        self._usage = usage
        self.description = Description()
        self.restarts = 0
        self.searches = 0
        self.empty_searches = 0
        self.short_searches = 0
        self.failures_in_a_row = 0
        self.cannot_forget = False
        self._search_lock = threading.RLock()

    # ------------------------------------------------------------ start and end

    def start(self) -> None:
        """Start the system and read its description.

        Raises:
            PluginError: It cannot be started, or describes itself wrongly.
        """
        self.stage("ingest")
        found = self.connection.call("describe", {}, timeout_seconds=self.ingest_seconds)
        described = read_description(found)
        self.description = replace(described, source=self.connection.source() or described.source)

    def new(self) -> PluginState:
        """Open a scope in the system."""
        state = PluginState(scope=f"memometer{uuid.uuid4().hex}", deadline=time.monotonic() + self.ingest_seconds)
        self._open(state)
        return state

    def _open(self, state: PluginState) -> None:
        self.stage("ingest")
        self._ingest_call(state, "open")
        state.started = self.connection.starts

    def close(self, state: PluginState) -> None:
        """Delete the scope. A failure is not an error of the run."""
        if state.started == self.connection.starts and not self.skipped:
            self.connection.call("close", {"scope": state.scope}, timeout_seconds=self.search_seconds)

    def stop(self) -> None:
        """End the connection."""
        self.connection.stop()

    # ------------------------------------------------------------ ingest

    def observe(self, state: PluginState, turns: Sequence[Turn]) -> None:
        """Send turns to the system."""
        self.stage("ingest")
        self._restore(state)
        self._ingest_call(state, "add", turns=[turn_message(turn) for turn in turns])
        super().observe(state, turns)
        state.searches.clear()

    def forget(self, state: PluginState, turn_ids: Collection[str]) -> None:
        """Let the system delete turns. A system without `forget` keeps them, and the report says so."""
        self.stage("ingest")
        self._restore(state)
        if "forget" not in self.description.optional:
            self.cannot_forget = True
            return
        self._ingest_call(state, "forget", ids=list(turn_ids))
        state.searches.clear()
        state.forgotten.update(turn_ids)

    def asked_by(self, asker: str) -> Memory[PluginState]:
        return _AskedBy(self, asker) if "asker" in self.description.optional else self

    def ready(self, state: PluginState) -> None:
        """Wait until the system is ready.

        Raises:
            PluginError: It is not ready in time.
        """
        self.stage("ingest")
        while self._ingest_call(state, "ready") is False:
            if time.monotonic() + POLL_SECONDS > state.deadline:
                raise PluginError(f"it was not ready within {self.ingest_seconds:g} s after the ingest")
            time.sleep(POLL_SECONDS)
        state.searches.clear()

    def finish(self, state: PluginState) -> None:
        """Wait until the system is ready, and try one search.

        Raises:
            PluginError: The system is not ready in time, or finds nothing at all.
        """
        self.ready(state)
        if not state.turns:
            return
        canary = max(state.turns, key=lambda turn: (min(len(turn.text), 200), turn.id))
        if not self._search(state, turn_message(canary)["text"], limit=10):
            raise PluginError(
                f"its memory is empty after the ingest of {len(state.turns)} turns: a search for the text of one of "
                "them found nothing"
            )

    def _ingest_call(self, state: PluginState, method: str, **params: Any) -> Any:
        left = state.deadline - time.monotonic()
        if left <= 0:
            raise PluginError(
                f"the ingest of a conversation took longer than {self.ingest_seconds:g} s (--ingest-timeout)"
            )
        return self.connection.call(method, {"scope": state.scope, **params}, timeout_seconds=left)

    def _restore(self, state: PluginState) -> bool:
        """If the system was started again, and so has forgotten everything, add the turns of a state again."""
        if state.started == self.connection.begin():
            return False
        self.restarts += 1
        state.deadline = time.monotonic() + self.ingest_seconds
        self._open(state)
        kept = (turn for turn in state.turns if turn.id not in state.forgotten)
        for _, session in groupby(kept, key=lambda turn: turn.session):
            self._ingest_call(state, "add", turns=[turn_message(turn) for turn in session])
        return True

    # ------------------------------------------------------------ recall

    def recall(self, state: PluginState, question: str, budget_tokens: int, asker: str = "") -> Recall:
        """Search once for a question, and pack what was found into a budget.

        Args:
            state: The state.
            question: The question.
            budget_tokens: A hard bound.
            asker: The person who asks, for a system that has `asker`.

        Raises:
            PluginError: The search failed.
        """
        with self._search_lock:
            if (question, asker) not in state.searches:
                try:
                    state.searches[question, asker] = self._filled(state, question, asker)
                except PluginError as error:
                    self.failures_in_a_row += 1
                    if self.failures_in_a_row >= GIVE_UP_AFTER:
                        self.skipped = f"{GIVE_UP_AFTER} searches in a row failed, the last: {error}"
                    raise
                self.failures_in_a_row = 0
            items = state.searches[question, asker]
        return self.pack(state, items, budget_tokens)

    def returned(self, state: PluginState, question: str, asker: str = "") -> Sequence[Item]:
        """Return the items that the search for a question found, by rank."""
        return state.searches.get((question, asker), ())

    def _filled(self, state: PluginState, question: str, asker: str) -> list[Item]:
        """Search with a growing limit until the largest budget is full or the system has no more."""
        if self._restore(state):
            self.finish(state)
        self.stage("search")
        budget = self.largest_budget
        mean_tokens = max(1.0, sum(state.line_tokens) / len(state.line_tokens))
        limit = min(10 + int(FIRST_LIMIT * budget / mean_tokens), MOST_ITEMS)
        while True:
            items = self._search(state, question, limit, asker)
            left = budget - self.pack(state, items, budget).tokens
            if len(items) < limit or left <= max(8, SPARE * budget) or limit >= MOST_ITEMS:
                break
            limit = min(4 * limit, MOST_ITEMS)
        self.searches += 1
        self.empty_searches += not items
        everything = sum(state.line_tokens) + sum(state.header_tokens.values())
        self.short_searches += left > 0.1 * budget and budget < everything
        return items

    def _search(self, state: PluginState, question: str, limit: int, asker: str = "") -> list[Item]:
        at = state.turns[-1].said_at.isoformat()
        params = {"scope": state.scope, "question": question, "limit": limit, "at": at}
        if asker:
            params["asker"] = asker
        found = self.connection.call("search", params, timeout_seconds=self.search_seconds)
        return read_items(found, {turn.id for turn in state.turns}, limit)

    def pack(self, state: PluginState, items: Sequence[Item], budget_tokens: int) -> Recall:
        """Fill a budget with items by rank; items that do not fit are skipped.

        If every item shows turns unchanged, the turns are printed in time order under their dates, as those of the
        built-in systems. Otherwise the texts of the items are printed by rank.

        Args:
            state: The state.
            items: The items, the best first.
            budget_tokens: A hard bound.
        """
        by_id = {turn.id: position for position, turn in enumerate(state.turns)}
        named = [[state.turns[by_id[id]] for id in item.turn_ids or ()] for item in items]
        if all(turns and is_verbatim(item, turns) for item, turns in zip(items, named, strict=True)):
            order = dict.fromkeys(by_id[id] for item in items for id in item.turn_ids or ())
            recall = pack(state, order, budget_tokens, self.count)
            shown = set(recall.turn_ids)
            return replace(recall, items=tuple(i for i in items if shown.issuperset(i.turn_ids or ())))
        return self._pack_texts(items, named, budget_tokens)

    def _pack_texts(self, items: Sequence[Item], named: Sequence[Sequence[Turn]], budget_tokens: int) -> Recall:
        texts = [
            lines_of("".join(turn.line for turn in turns) if item.text is None else item.text)
            for item, turns in zip(items, named, strict=True)
        ]
        left = budget_tokens
        chosen: list[int] = []
        for position, text in enumerate(texts):
            if left <= 0:
                break
            if text and len(text.encode()) <= 64 * left and (cost := self.count(text)) <= left:
                chosen.append(position)
                left -= cost
        while chosen and self.count("".join(texts[i] for i in chosen)) > budget_tokens:
            chosen.pop()  # a tokenizer may join tokens across lines
        text = "".join(texts[i] for i in chosen)
        grain = max((_grain(items[i], named[i]) for i in chosen), default="turn")
        sources = tuple(dict.fromkeys(id for i in chosen for id in items[i].turn_ids or ()))
        return Recall(
            text=text,
            tokens=self.count(text),
            turn_ids=sources if grain == "turn" else (),
            source_ids=sources,
            provenance={"turn": "turn", "turns": "batch", "unknown": "none"}[grain],
            items=tuple(items[i] for i in chosen),
        )

    def take_usage(self, stage: str) -> Mapping[str, int]:
        """Return the model calls of the system since the last call."""
        return self._usage(stage)

    def notices(self) -> list[str]:
        """Return sentences for the report about what went wrong without ending the system."""
        found = self.connection.notices()
        if self.restarts:
            times = "once" if self.restarts == 1 else f"{self.restarts} times"
            found.append(f"its process ended and was started again {times}; the conversation was ingested again")
        if self.cannot_forget:
            found.append("it has no forget, so what was to be deleted stays")
        if self.empty_searches:
            found.append(f"{self.empty_searches:,} of {self.searches:,} searches found nothing")
        if self.short_searches:
            found.append(
                f"{self.short_searches:,} of {self.searches:,} searches found too little to fill the largest budget of "
                f"{self.largest_budget:,}"
            )
        return found


class _AskedBy(Memory[PluginState]):
    """A plug-in for the questions of one person."""

    state_type = PluginState
    shows_turns = False

    def __init__(self, memory: PluginMemory, asker: str) -> None:
        super().__init__(count=memory.count)
        self.memory, self.asker = memory, asker

    def recall(self, state: PluginState, question: str, budget_tokens: int) -> Recall:
        return self.memory.recall(state, question, budget_tokens, self.asker)

    def returned(self, state: PluginState, question: str) -> Sequence[Item]:
        return self.memory.returned(state, question, self.asker)


def _grain(item: Item, turns: Sequence[Turn]) -> str:
    """Return how exactly an item names its source; later words are coarser."""
    if not turns:
        return "unknown"
    return "turn" if len(turns) == 1 or is_verbatim(item, turns) else "turns"
