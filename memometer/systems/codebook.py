"""A vector codebook: a ring buffer of the latest vectors, and a small set of codes for recurring ones.

It combines leader clustering (DP-means), moving averages as in vector quantisation, decaying weights as in DenStream
and a novelty threshold. It summarises a conversation and detects new content. As the only memory it performs poorly:
each code shows one turn, and two thirds of the turns are between the two thresholds, so they are lost when they leave
the ring.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Collection, Sequence
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
    """An entry of the ring or the codebook.

    Attributes:
        vector: unit vector as float32 bytes.
        energy: the weight at `time`.
        time: time of the last change in hours.
        of: number of the vector that created the entry, in order of addition.
        goal: the goal at that time as float32 bytes.
    """

    vector: bytes
    energy: float
    time: float
    of: int
    goal: bytes = b""


@dataclass
class Codes:
    """The ring and the codebook.

    Args:
        feature_dim: dimensions of the vectors.
        short_max: maximum number of entries in the ring; the oldest is dropped first.
        long_max: maximum number of codes; a new code replaces the one with the least energy.
        ema_alpha: weight of a new vector in the moving average of its code.
        consolidate_thresh: minimum cosine at which a code absorbs a vector.
        novelty_thresh: a vector with a lower cosine to every code becomes a new code. Vectors between the two
            thresholds are in the ring only.
        age_beta: energy decays by exp(-age_beta) per hour.
        goal_dim: dimensions of the goal, the mean of the vectors given to `aim`.
        short: the ring.
        long: the codes.
        goal: the goal as float32 bytes.
        goals: number of vectors given to `aim`.
        added: number of vectors given to `add`.
        last: id of the last episode that was added from a store.
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
        """Add a vector, shape (feature_dim,), at a time in hours."""
        row = np.asarray(vector, np.float32).reshape(self.feature_dim)
        if not np.isfinite(row).all():
            raise ValueError("a vector holds NaN or infinity; the codebook takes finite numbers")
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
        """Add a vector, shape (goal_dim,), to the goal, which is the mean of all these vectors."""
        row = np.asarray(vector, np.float32).reshape(self.goal_dim)
        self.goals += 1
        goal = np.frombuffer(self.goal, np.float32) if self.goal else np.zeros_like(row)
        self.goal = (goal + (row - goal) / np.float32(self.goals)).tobytes()

    def dump(self) -> dict[str, Any]:
        """Return the vectors, energies and times of the ring and the codebook, and the goal, as arrays."""
        parts = (("short", self.short), ("long", self.long))
        dumped: dict[str, Any] = {f"{name}_vectors": self.matrix(entries) for name, entries in parts}
        for name, entries in parts:
            dumped[f"{name}_energies"] = np.array([entry.energy for entry in entries])
            dumped[f"{name}_times"] = np.array([entry.time for entry in entries])
        return {**dumped, "goal": np.frombuffer(self.goal, np.float32)}

    def energy_stats(self, *, time: float) -> dict[str, float]:
        """Return the number, sum, mean, minimum and maximum of the codes' energies at a time in hours."""
        energies = [self._faded(code, time) for code in self.long] or [0.0]
        total, count = sum(energies), len(self.long)
        return {
            "count": count, "sum": total, "mean": total / max(1, count), "min": min(energies), "max": max(energies)
        }  # fmt: skip

    def catch_up(self, store: Store, scope: str) -> None:
        """Add the episodes that were stored since the last call. If some were deleted, rebuild the codebook.

        Agents that share a scope get the same codebook, because it uses the store's quantised vectors.

        Args:
            store: the store.
            scope: name of the scope.
        """
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
        """Return the vectors of entries, shape (entries, feature_dim)."""
        return np.frombuffer(b"".join(entry.vector for entry in entries), np.float32).reshape(-1, self.feature_dim)

    def _faded(self, entry: Entry, time: float) -> float:
        return entry.energy * math.exp(-self.age_beta * max(0.0, time - entry.time))


@dataclass
class CodebookState(State):
    """A State with its codes.

    Attributes:
        codes: the ring and the codebook; None before the first turn.
        scope: name of the scope in the store; empty without a store.
    """

    codes: Codes | None = None
    scope: str = ""


class Codebook(Memory[CodebookState]):
    """Ranks the turns of the codes and the ring by cosine. It cannot recall other turns.

    Args:
        count: counts tokens; see Memory.
        encoder: the encoder; None to load the default one at first use.
        memory_url: URL of a store for all turns, from which the codes can be rebuilt; None to use the state alone.
        parameters: parameters of `Codes`.
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
        """Return an empty state. With a memory URL, it gets a new scope."""
        return self.open(uuid.uuid4().hex) if self.memory_url else CodebookState()

    def open(self, scope: str) -> CodebookState:
        """Return the state of an existing scope of the store. The turns are encoded again."""
        state = CodebookState(scope=scope)
        assert self.memory_url
        turns = [turn_of(episode) for episode in opened(self.memory_url).scan(scope)]
        self._add_turns(state, turns, self._vectors(turns))
        return state

    def observe(self, state: CodebookState, turns: Sequence[Turn]) -> None:
        """Append turns. With a store, known turns are skipped."""
        if not self.memory_url:
            self._add_turns(state, turns, self._vectors(turns))
            return
        store = opened(self.memory_url)
        known = {episode.id for episode in store.get(state.scope, [turn.id for turn in turns])}
        if turns := [turn for turn in turns if turn.id not in known]:
            vectors = self._vectors(turns)
            episodes = [episode_of(turn, len(state.turns) + n) for n, turn in enumerate(turns)]
            store.store_episodes(state.scope, episodes, np.stack(vectors), encoder=self._encoder().name)
            self._add_turns(state, turns, vectors)

    def forget(self, state: CodebookState, turn_ids: Collection[str]) -> None:
        """Delete turns, and build the codes again from those that remain."""
        if not self.memory_url:
            super().forget(state, turn_ids)
            return
        opened(self.memory_url).delete(state.scope, sorted(set(turn_ids)))
        vars(state).update(vars(self.open(state.scope)))

    def _add_turns(self, state: CodebookState, turns: Sequence[Turn], vectors: Sequence[np.ndarray]) -> None:
        for turn, vector in zip(turns, vectors, strict=True):
            if state.codes is None:
                parameters: dict[str, Any] = {"feature_dim": len(vector), **self.parameters}
                state.codes = Codes(**parameters)
            state.codes.add(vector, time=at_of(turn) / 3600)
        super().observe(state, turns)

    def _vectors(self, turns: Sequence[Turn]) -> list[np.ndarray]:
        # Encode one by one, because the last bits of a vector depend on the whole call.
        return [self._encoder()([turn.header + turn.line])[0] for turn in turns]

    def recall(self, state: CodebookState, question: str, budget_tokens: int) -> Recall:
        if state.codes is None:
            return Recall()
        entries = [*state.codes.long, *state.codes.short]
        cosines = state.codes.matrix(entries) @ self._encoder()([question])[0]
        ranked = [entries[i].of for i in np.argsort(-cosines, kind="stable")]
        return pack(state, dict.fromkeys(ranked), budget_tokens, self.count, question=question, form=self.form)

    def _encoder(self) -> Encoder:
        if self.encoder is None:
            self.encoder = encoders.load()
        return self.encoder
