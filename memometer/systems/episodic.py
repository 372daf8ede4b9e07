"""Episodic memory: every turn is an episode with a time, an importance and a use count, in a store (memometer/store/).

Example:
    memory = Episodic(memory_url="sqlite:///memory.db")
    state = memory.open("agent-1")                       # includes the turns that other processes observed
    memory.observe(state, turns)                         # the turns are on disk when it returns
    recall = memory.recall(state, question, 2048, at=now)
    memory.observe_uses(state, recall.turn_ids)          # recall does not write
    memory.consolidate(state, at=now)                    # merges and archives; run it every night, for example
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import cast

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
    """The state of one scope of a store.

    Attributes:
        scope: name of the scope.
        store: the episodes, if the memory has no URL.
        number: number of the next episode, in order of observation.
    """

    scope: str = ""
    store: InMemory = field(default_factory=InMemory)
    number: int = 0


class Episodic(Memory[EpisodicState]):
    """Ranks turns by a weighted sum of words, meaning, recency, importance and use.

    Args:
        count: counts tokens; see Memory.
        encoder: the encoder; None to load the default one at first use.
        weights: weights for recall, merging and archiving; the defaults were tuned by experiments.
        memory_url: URL of the store, such as sqlite:///memory.db; None to keep the episodes in the state.
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
        """Return an empty state. With a memory URL, it gets a new scope."""
        return self.open(uuid.uuid4().hex) if self.memory_url else EpisodicState()

    def open(self, scope: str) -> EpisodicState:
        """Return the state of an existing scope of the store."""
        state = EpisodicState(scope=scope)
        size = self.store(state).size(scope)
        state.number = size.episodes + size.archived
        return state

    def store(self, state: EpisodicState) -> Store:
        """Return the store of a state."""
        return opened(self.memory_url) if self.memory_url else state.store

    def observe(self, state: EpisodicState, turns: Sequence[Turn]) -> None:
        """Append turns. Known turns are skipped, so that a caller can repeat a call after a crash."""
        encoder = self._encoder()
        new = turn_conversion.observe(self.store(state), state.scope, turns, encoder=encoder, number=state.number)
        state.number += len(new)
        super().observe(state, new)

    def forget(self, state: EpisodicState, turn_ids: Collection[str]) -> None:
        """Delete turns from the store."""
        gone = set(turn_ids)
        self.store(state).delete(state.scope, sorted(gone))
        kept = State()
        super().observe(cast(EpisodicState, kept), [turn for turn in state.turns if turn.id not in gone])
        vars(state).update(vars(kept))

    def recall(self, state: EpisodicState, question: str, budget_tokens: int, *, at: float | None = None) -> Recall:
        """Select the turns to show for a question.

        Args:
            state: the state.
            question: the question; any text.
            budget_tokens: the maximum length of the text.
            at: time of the question in Unix seconds; None for the time of the newest episode.

        Returns:
            The text and the ids of its turns.
        """
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
        """Increase the use count of turns, for example of those that a recall showed or an answer cited."""
        self.store(state).change(state.scope, uses=Counter(turn_ids))

    def consolidate(self, state: EpisodicState, *, at: float) -> Consolidated:
        """Merge near-duplicates and archive turns of low weight.

        Args:
            state: the state.
            at: the current time in Unix seconds.

        Returns:
            The ids of merged and archived turns.
        """
        return self.store(state).consolidate(state.scope, at=at, weights=self.weights)

    def _encoder(self) -> Encoder:
        if self.encoder is None:
            self.encoder = encoders.load()
        return self.encoder


class EpisodicSeed(Episodic):
    """The episodic memory with the untuned weights of its first design, for comparison."""

    def __init__(
        self, *, count: TokenCounter | None = None, encoder: Encoder | None = None, memory_url: str | None = None
    ) -> None:
        super().__init__(count=count, encoder=encoder, weights=SEED, memory_url=memory_url)
