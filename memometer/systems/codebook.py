"""The unified memory of vectors: a ring of what came last, and a small codebook of what keeps coming back.

It is leader clustering (DP-means) with the moving averages of vector quantisation, the fading weights of DenStream, and
a threshold of novelty: good for an overview and for telling what is new. As the only memory it is poor: one turn is
shown for each code, and two in three turns fall between the thresholds and are gone when they leave the ring.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from memometer.budget import pack
from memometer.memory import Memory, Recall, State, Turn
from memometer.models import encoders
from memometer.models.encoders import Encoder
from memometer.store import opened
from memometer.store.protocol import Store
from memometer.store.turn_conversion import at_of, episode_of, turn_of
from memometer.token_counters import TokenCounter


@dataclass
class Entry:
    """A vector of unit length, float32 as bytes; what it is worth (energy) and when that was so, in hours; what it is
    of (the number of an addition); and the goal that held."""

    vector: bytes
    energy: float
    time: float
    of: int
    goal: bytes = b""


@dataclass
class Codes:
    """The ring and the codebook, as a value.

    Args:
        feature_dim: of the vectors.
        short_max: entries of the ring; the oldest goes first.
        long_max: codes; the one of least energy gives way.
        ema_alpha: how far a code moves towards a vector that it takes in.
        consolidate_thresh: cosine from which a code takes a vector in.
        novelty_thresh: cosine to the nearest code below which a vector becomes a code of its own. What lies between the
            two is in the ring only.
        age_beta: energy fades by exp(-age_beta) an hour.
        goal_dim: of the goal, a moving average of what `aim` is given, which moves less each time.
        last: the id of the episode that was taken in last from a store.
    """

    feature_dim: int
    short_max: int = 32
    long_max: int = 128
    ema_alpha: float = 0.1
    consolidate_thresh: float = 0.8
    novelty_thresh: float = 0.6
    age_beta: float = 0.001
    goal_dim: int = 0
    short: list[Entry] = field(default_factory=list)
    long: list[Entry] = field(default_factory=list)
    goal: bytes = b""
    goals: int = 0
    added: int = 0
    last: str = ""

    def add(self, vector: np.ndarray, *, time: float, energy: float = 1.0) -> None:
        """Take in a vector, shape (feature_dim,), at some time in hours."""
        row = np.asarray(vector, np.float32).reshape(self.feature_dim)
        row = row / max(float(np.linalg.norm(row)), 1e-12)
        entry = Entry(row.tobytes(), energy, time, self.added, self.goal)
        self.added += 1
        self.short = [*self.short, entry]
        del self.short[: max(0, len(self.short) - self.short_max)]
        cosines = self.matrix(self.long) @ row
        best = int(cosines.argmax()) if len(cosines) else -1
        if best >= 0 and cosines[best] >= self.consolidate_thresh:
            code = self.long[best]
            mixed = (1 - self.ema_alpha) * np.frombuffer(code.vector, np.float32) + self.ema_alpha * row
            mixed = (mixed / max(float(np.linalg.norm(mixed)), 1e-12)).astype(np.float32)
            self.long[best] = Entry(mixed.tobytes(), self._faded(code, time) + energy, time, code.of, code.goal)
        elif best < 0 or cosines[best] < self.novelty_thresh:
            if len(self.long) >= self.long_max:
                self.long.remove(min(self.long, key=lambda code: (self._faded(code, time), code.of)))
            self.long.append(entry)

    def aim(self, vector: np.ndarray) -> None:
        """Move the goal towards a vector, shape (goal_dim,): the n-th by 1 / n, so that it is their mean."""
        row = np.asarray(vector, np.float32).reshape(self.goal_dim)
        self.goals += 1
        goal = np.frombuffer(self.goal, np.float32) if self.goal else np.zeros_like(row)
        self.goal = (goal + (row - goal) / np.float32(self.goals)).tobytes()

    def dump(self) -> dict[str, Any]:
        """Vectors, energies and times of ring and codebook, and the goal, as arrays."""
        parts = (("short", self.short), ("long", self.long))
        dumped: dict[str, Any] = {f"{name}_vectors": self.matrix(entries) for name, entries in parts}
        for name, entries in parts:
            dumped[f"{name}_energies"] = np.array([entry.energy for entry in entries])
            dumped[f"{name}_times"] = np.array([entry.time for entry in entries])
        return {**dumped, "goal": np.frombuffer(self.goal, np.float32)}

    def energy_stats(self, *, time: float) -> dict[str, float]:
        """Number, sum, mean, least and greatest energy of the codes at some time."""
        energies = [self._faded(code, time) for code in self.long] or [0.0]
        total, count = sum(energies), len(self.long)
        return {
            "count": count, "sum": total, "mean": total / max(1, count), "min": min(energies), "max": max(energies)
        }  # fmt: skip

    def catch_up(self, store: Store, scope: str) -> None:
        """Add what was stored in a scope since the last time, or all anew where some of it was removed for good. Agents
        that store into one scope and catch up have one codebook: its vectors are the store's, rotated and rounded."""
        kind = store.vector_format()
        held = [episode for episode in store.scan(scope) if episode.codes]
        if self.added and [episode.id for episode in held[self.added - 1 : self.added]] != [self.last]:
            self.short, self.long, self.added = [], [], 0
        for episode in held[self.added :]:
            assert kind
            levels = kind.quantiser.levels(kind.quantiser.matrix([episode.codes]))[0]
            self.add(levels, time=episode.at / 3600, energy=2 * episode.importance)
            self.last = episode.id

    def matrix(self, entries: Sequence[Entry]) -> np.ndarray:
        """Their vectors, shape (entries, feature_dim)."""
        return np.frombuffer(b"".join(entry.vector for entry in entries), np.float32).reshape(-1, self.feature_dim)

    def _faded(self, entry: Entry, time: float) -> float:
        return entry.energy * math.exp(-self.age_beta * max(0.0, time - entry.time))


@dataclass
class CodebookState(State):
    """A State with the codes of its turns; none before the first turn. `scope` is of the store, where there is one."""

    codes: Codes | None = None
    scope: str = ""


class Codebook(Memory[CodebookState]):
    """The turns that made the codes, and those in the ring, by cosine; of other turns nothing is known.

    Args:
        encoder: makes the vectors; None for the default one, loaded at first use.
        memory_url: of a store that keeps every turn, so that the codes can be made again; None keeps them in the state.
        parameters: of `Codes`, by name.
    """

    state_type = CodebookState
    needs_encoder = True
    takes_memory_url = True

    def __init__(
        self,
        *,
        count: TokenCounter | None = None,
        encoder: Encoder | None = None,
        memory_url: str | None = None,
        **parameters: float,
    ) -> None:
        super().__init__(count=count)
        self.encoder = encoder
        self.memory_url = memory_url
        self.parameters = parameters

    def new(self) -> CodebookState:
        """An empty state, of a scope of its own where there is a store."""
        return self.open(uuid.uuid4().hex) if self.memory_url else CodebookState()

    def open(self, scope: str) -> CodebookState:
        """The state of all that was observed in a scope of the store; its turns are encoded again."""
        state = CodebookState(scope=scope)
        assert self.memory_url
        turns = [turn_of(episode) for episode in opened(self.memory_url).scan(scope)]
        self._take_in(state, turns, self._vectors(turns))
        return state

    def observe(self, state: CodebookState, turns: Sequence[Turn]) -> None:
        """As Memory's. With a store, a turn that is known already is passed over."""
        if not self.memory_url:
            self._take_in(state, turns, self._vectors(turns))
            return
        store = opened(self.memory_url)
        known = {episode.id for episode in store.get(state.scope, [turn.id for turn in turns])}
        if turns := [turn for turn in turns if turn.id not in known]:
            vectors = self._vectors(turns)
            episodes = [episode_of(turn, len(state.turns) + n) for n, turn in enumerate(turns)]
            store.store_episodes(state.scope, episodes, np.stack(vectors), encoder=self._encoder().name)
            self._take_in(state, turns, vectors)

    def _take_in(self, state: CodebookState, turns: Sequence[Turn], vectors: Sequence[np.ndarray]) -> None:
        for turn, vector in zip(turns, vectors, strict=True):
            if state.codes is None:
                parameters: dict[str, Any] = {"feature_dim": len(vector), **self.parameters}
                state.codes = Codes(**parameters)
            state.codes.add(vector, time=at_of(turn) / 3600)
        super().observe(state, turns)

    def _vectors(self, turns: Sequence[Turn]) -> list[np.ndarray]:
        # One by one, because the last bits of a vector depend on what is encoded with it.
        return [self._encoder()([turn.header + turn.line])[0] for turn in turns]

    def recall(self, state: CodebookState, question: str, budget_tokens: int) -> Recall:
        if state.codes is None:
            return Recall()
        entries = [*state.codes.long, *state.codes.short]
        cosines = state.codes.matrix(entries) @ self._encoder()([question])[0]
        ranked = [entries[i].of for i in np.argsort(-cosines, kind="stable")]
        return pack(state, dict.fromkeys(ranked), budget_tokens, self.count, form=self.form)

    def _encoder(self) -> Encoder:
        if self.encoder is None:
            self.encoder = encoders.load()
        return self.encoder
