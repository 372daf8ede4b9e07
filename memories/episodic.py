"""Episodic memory: each turn an episode with a time, importance and uses, kept by a store (stores/).

memory = Episodic(memory_url="sqlite:///memory.db")
state = memory.open("agent-1")                       # what was observed before, by any process
memory.observe(state, turns)                         # there when it returns
recall = memory.recall(state, question, 2048, at=now)
memory.observe_uses(state, recall.turn_ids)          # recall itself writes nothing
memory.consolidate(state, at=now)                    # merge and forget: when idle, or nightly
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from language_models import encoders
from language_models.encoders import Encoder
from memories.episodes import episodes_of, turn_of
from memory_system import Memory, Recall, State, TokenCounter, Turn, pack
from stores import opened
from stores.episode import Episode
from stores.fusion import DEFAULT, SEED, Weights
from stores.memory import InMemory
from stores.store import Consolidated, Store

LEAST_LINES = 100
"""At least so many episodes are asked for, and one for each four tokens of the budget: few lines are shorter."""


@dataclass
class EpisodicState(State):
    """Whose episodes (`scope`), and the store that holds them where the memory has no URL. Episodes are numbered in the
    order of observing; `turns` are those observed through this very state."""

    scope: str = ""
    store: InMemory = field(default_factory=InMemory)
    number: int = 0


class Episodic(Memory[EpisodicState]):
    """Turns by words, meaning, recency, importance and use, each with its weight.

    Args:
        encoder: makes the vectors; None for the default one, loaded at first use.
        weights: of recall, merging and forgetting; the default is what measurement supports.
        memory_url: of the store, such as sqlite:///memory.db; None keeps everything in the state.
    """

    state_type = EpisodicState
    needs_encoder = True
    takes_memory_url = True

    def __init__(
        self,
        *,
        count: TokenCounter | None = None,
        encoder: Encoder | None = None,
        weights: Weights = DEFAULT,
        memory_url: str | None = None,
    ) -> None:
        super().__init__(count=count)
        self.encoder = encoder
        self.weights = weights
        self.memory_url = memory_url

    def new(self) -> EpisodicState:
        """An empty state, of a scope of its own where there is a store."""
        return self.open(uuid.uuid4().hex) if self.memory_url else EpisodicState()

    def open(self, scope: str) -> EpisodicState:
        """The state of all that was observed in a scope of the store."""
        state = EpisodicState(scope=scope)
        size = self.store(state).size(scope)
        state.number = size.episodes + size.archived
        return state

    def store(self, state: EpisodicState) -> Store:
        return opened(self.memory_url) if self.memory_url else state.store

    def observe(self, state: EpisodicState, turns: Sequence[Turn]) -> None:
        """As Memory's. A turn that is known already is passed over, so that after a crash all can be repeated."""
        known = {episode.id for episode in self.store(state).get(state.scope, [turn.id for turn in turns])}
        turns = [turn for turn in turns if turn.id not in known]
        # Session by session, because the last bits of a vector depend on what is encoded with it.
        for _, session in groupby(turns, key=lambda turn: turn.session):
            said = list(session)
            encoder = self._encoder()
            vectors = encoder([turn.header + turn.line for turn in said])
            episodes = episodes_of(said, state.number)
            self.store(state).store_episodes(state.scope, episodes, vectors, encoder=encoder.name)
            state.number += len(said)
        super().observe(state, turns)

    def recall(self, state: EpisodicState, question: str, budget_tokens: int, *, at: float | None = None) -> Recall:
        """As Memory's, at some time (Unix seconds); None asks at the time of the newest episode."""
        store = self.store(state)
        with store.reading():
            newest = store.rows(state.scope, store.newest(state.scope, 1))
            if not newest:
                return Recall()
            found = store.retrieve_similar(
                state.scope,
                question,
                self._encoder()([question])[0],
                max(LEAST_LINES, budget_tokens // 4),
                at=next(iter(newest.values())).at if at is None else at,
                weights=self.weights,
            )
        shown = sorted((hit.episode for hit in found), key=lambda e: (e.at, e.details.get("n", 0), e.id))
        places = {episode.id: place for place, episode in enumerate(shown)}
        ranking = (places[hit.episode.id] for hit in found)
        return pack(self._printed(shown), ranking, budget_tokens, self.count, form=self.form)

    def observe_uses(self, state: EpisodicState, turn_ids: Sequence[str]) -> None:
        """Count that these turns were used: those that a recall showed, or those that an answer cited."""
        self.store(state).change(state.scope, uses=Counter(turn_ids))

    def consolidate(self, state: EpisodicState, *, at: float) -> Consolidated:
        """Merge near-duplicates and archive what is forgotten, by the weights, at some time (Unix seconds)."""
        return self.store(state).consolidate(state.scope, at=at, weights=self.weights)

    def _printed(self, episodes: Sequence[Episode]) -> State:
        """Episodes in time order as `pack` takes them."""
        state = State()
        for episode in episodes:
            turn, line = turn_of(episode), episode.text + "\n"
            state.turns.append(turn)
            state.lines.append(line)
            state.line_tokens.append(self.count(line))
            if turn.session not in state.header_tokens:
                state.header_tokens[turn.session] = self.count(turn.header)
        state.least_line_tokens = min(state.line_tokens, default=0)
        return state

    def _encoder(self) -> Encoder:
        if self.encoder is None:
            self.encoder = encoders.load()
        return self.encoder


class Seed(Episodic):
    """The same with the weights of the idea that this project grew from."""

    def __init__(
        self, *, count: TokenCounter | None = None, encoder: Encoder | None = None, memory_url: str | None = None
    ) -> None:
        super().__init__(count=count, encoder=encoder, weights=SEED, memory_url=memory_url)
