"""Episodic memory: each turn an episode with a time, importance and uses, kept by a store (memometer/store/).

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

from memometer.memory import Memory, Recall, State, Turn
from memometer.models import encoders
from memometer.models.encoders import Encoder
from memometer.store import opened, turn_conversion
from memometer.store.hybrid_scoring import DEFAULT, SEED, Weights
from memometer.store.in_memory import InMemory
from memometer.store.protocol import Consolidated, Store
from memometer.token_counters import TokenCounter


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
        encoder = self._encoder()
        new = turn_conversion.observe(self.store(state), state.scope, turns, encoder=encoder, number=state.number)
        state.number += len(new)
        super().observe(state, new)

    def recall(self, state: EpisodicState, question: str, budget_tokens: int, *, at: float | None = None) -> Recall:
        """As Memory's, at some time (Unix seconds); None asks at the time of the newest episode."""
        return turn_conversion.recall(
            self.store(state),
            state.scope,
            question,
            budget_tokens,
            encoder=self._encoder(),
            count=self.count,
            weights=self.weights,
            at=at,
            form=self.form,
        )

    def observe_uses(self, state: EpisodicState, turn_ids: Sequence[str]) -> None:
        """Count that these turns were used: those that a recall showed, or those that an answer cited."""
        self.store(state).change(state.scope, uses=Counter(turn_ids))

    def consolidate(self, state: EpisodicState, *, at: float) -> Consolidated:
        """Merge near-duplicates and archive what is forgotten, by the weights, at some time (Unix seconds)."""
        return self.store(state).consolidate(state.scope, at=at, weights=self.weights)

    def _encoder(self) -> Encoder:
        if self.encoder is None:
            self.encoder = encoders.load()
        return self.encoder


class EpisodicSeed(Episodic):
    """The same with the weights of the idea that this project grew from."""

    def __init__(
        self, *, count: TokenCounter | None = None, encoder: Encoder | None = None, memory_url: str | None = None
    ) -> None:
        super().__init__(count=count, encoder=encoder, weights=SEED, memory_url=memory_url)
