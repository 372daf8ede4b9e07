"""Vector retrieval of turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from memometer.budget import best_first, pack
from memometer.memory import Memory, Recall, State, Turn
from memometer.models import encoders
from memometer.models.encoders import Encoder
from memometer.token_counters import TokenCounter


@dataclass
class VectorState(State):
    """A State with each turn's unit vector as float32 bytes, which can be compared and saved."""

    vectors: list[bytes] = field(default_factory=list)


class Vector(Memory[VectorState]):
    """Ranks turns by the cosine of their vectors with the question's. The date line is encoded with the turn.

    Args:
        count: counts tokens, as in Memory.
        encoder: the encoder; None for the default one, loaded at first use.
    """

    state_type = VectorState
    needs_encoder = True

    def __init__(self, *, count: TokenCounter | None = None, encoder: Encoder | None = None) -> None:
        super().__init__(count=count)
        self.encoder = encoder

    def observe(self, state: VectorState, turns: Sequence[Turn]) -> None:
        # Encode by session, because the last bits of a vector depend on the whole call.
        sessions = [list(session) for _, session in groupby(turns, key=lambda turn: turn.session)]
        vectors = [self._encode([turn.header + turn.line for turn in session]) for session in sessions]
        state.vectors.extend(row.tobytes() for rows in vectors for row in rows)
        super().observe(state, turns)

    def recall(self, state: VectorState, question: str, budget_tokens: int) -> Recall:
        if not state.turns:
            return Recall()
        return pack(
            state,
            best_first(self.cosines(state, question)),
            budget_tokens,
            self.count,
            question=question,
            form=self.form,
        )

    def cosines(self, state: VectorState, question: str) -> np.ndarray:
        """Return the cosine of each turn with a question, shape (turns,). The state has at least one turn."""
        vectors = np.frombuffer(b"".join(state.vectors), np.float32).reshape(len(state.turns), -1)
        cosines: np.ndarray = vectors @ self._encode([question])[0]
        return cosines

    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        if self.encoder is None:
            self.encoder = encoders.load()
        return self.encoder(texts)
