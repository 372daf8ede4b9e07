"""The token-aware adaptive memory: all turns, a learned ranking, and an exact budget."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from memometer.budget import best_first, pack
from memometer.memory import Memory, Recall, State, Turn
from memometer.retrieval import dates, late_interaction
from memometer.retrieval.features import POOL, Features, features
from memometer.retrieval.late_interaction import Projection, TokenVectors
from memometer.retrieval.ranker import SHIPPED, SHIPPED_WITH_ENCODER, Ranker
from memometer.retrieval.ranker import load as load_ranker
from memometer.retrieval.speakers import named_speaker, speaker_gap
from memometer.retrieval.turn_index import TurnIndex
from memometer.token_counters import TokenCounter


@dataclass
class IndexedState(State):
    """A State with the data that ranking needs about each turn."""

    index: TurnIndex = field(default_factory=TurnIndex)
    vectors: TokenVectors = field(default_factory=TokenVectors)


Self = TypeVar("Self", bound="AdaptiveMemory")


class AdaptiveMemory(Memory[IndexedState]):
    """Keeps every turn verbatim, with resolved dates written behind relative ones, and ranks turns by learned weights
    over many signals. Observing calls no model.

    Args:
        count: counts tokens, as in Memory.
        ranker: the ranking weights; None loads the shipped ones.
        encoder: adds matching by meaning (memometer/models/encoders.py); None matches by words alone.
        projection: the projection that the ranker was fitted with, if there is an encoder; None loads the shipped one.
            A state holds vectors of its projection and must be read with the same one.
    """

    state_type = IndexedState
    reads_in_rounds = True
    takes_token_encoder = True

    def __init__(
        self,
        *,
        count: TokenCounter | None = None,
        ranker: Ranker | None = None,
        encoder: late_interaction.MultiVectorEncoder | None = None,
        projection: Projection | None = None,
    ) -> None:
        super().__init__(count=count)
        self.ranker = ranker
        self.encoder = encoder
        self.projection = projection

    @property
    def fitted_on(self) -> tuple[str, ...]:
        mapped = self._projection().fitted_on if self.encoder else ()
        return tuple(dict.fromkeys((*self._ranker().fitted_on, *mapped)))

    def with_weights(self: Self, ranker: Ranker, projection: Projection | None = None) -> Self:
        """Return a copy of this memory with other weights."""
        other = copy(self)
        other.ranker, other.projection = ranker, projection
        return other

    def _ranker(self) -> Ranker:
        return self.ranker or load_ranker(SHIPPED_WITH_ENCODER if self.encoder else SHIPPED)

    def _projection(self) -> Projection:
        projection = self.projection or late_interaction.load(late_interaction.SHIPPED)
        assert self.encoder
        if projection.encoder not in ("", self.encoder.name):
            raise ValueError(
                f"the projection is for the encoder {projection.encoder}, not for {self.encoder.name}; fit one with "
                "python optimize.py --target retrieval --encoder NAME --out FOLDER."
            )
        return projection

    def line(self, turn: Turn) -> str:
        dated = replace(turn, text=dates.annotate(turn.text, turn.said_at.date()))
        return dated.line

    def observe(self, state: IndexedState, turns: Sequence[Turn]) -> None:
        state.index.add(turns)
        if self.encoder:
            projection = self._projection()
            projection.append(
                state.vectors, self.encoder.compact([late_interaction.document(turn) for turn in turns], projection)
            )
        super().observe(state, turns)

    def features(self, state: IndexedState, question: str) -> Features:
        """Return the ranking features of the turns for a question, before any weights."""
        if not self.encoder:
            return features(state.index, question)
        projection = self._projection()
        (asked,) = self.encoder.compact([question], projection)
        # In a long history, tokens are compared only in turns that the words, speakers or dates select.
        near = features(state.index, question).positions if len(state.index) > POOL else None
        return features(state.index, question, projection.similarities(state.vectors, asked, positions=near))

    def scores(self, state: IndexedState, question: str, follow_up_queries: Sequence[str] = ()) -> np.ndarray:
        """Return the score of each turn, shape (turns,), higher is better: the maximum over the question and the
        follow-up queries."""
        if not state.turns:
            return np.zeros(0, np.float32)
        weights = self._ranker()
        queries = (question, *follow_up_queries)
        return np.max([weights.scores(self.features(state, query)) for query in queries], axis=0)

    def recall(self, state: IndexedState, question: str, budget_tokens: int) -> Recall:
        scores = self.scores(state, question)
        recall = pack(state, best_first(scores), budget_tokens, self.count, form=self.form)
        return replace(recall, speaker_gap=self.speaker_gap(state, question, scores))

    def pages(self, state: IndexedState, question: str) -> RankedPages:
        """Return a recall in steps, for a reader that asks several times."""
        return RankedPages(self, state, question)

    def speaker_gap(self, state: IndexedState, question: str, scores: np.ndarray) -> float | None:
        """Return `Recall.speaker_gap` for the scores of a question."""
        named = named_speaker(question, state.index.speakers)
        if named is None:
            return None
        return speaker_gap(scores, np.array(state.index.speaker) == state.index.speakers.index(named))


class RankedPages:
    """Recalls the turns for one question in steps: each page holds the best turns that were not shown before.

    Attributes:
        speaker_gap: as in Recall.
    """

    def __init__(self, memory: AdaptiveMemory, state: IndexedState, question: str) -> None:
        self._memory, self._state, self._question = memory, state, question
        self._scores: dict[tuple[str, ...], np.ndarray] = {(): memory.scores(state, question)}
        self.speaker_gap = memory.speaker_gap(state, question, self._scores[()])

    def __call__(self, follow_up_queries: tuple[str, ...], shown: tuple[str, ...], budget_tokens: int) -> Recall:
        """Return the next page as numbered lines.

        Args:
            follow_up_queries: further queries of the reader; they count as much as the question.
            shown: the ids of the turns shown already; the new lines continue their numbers.
            budget_tokens: a hard bound on this page.
        """
        if follow_up_queries not in self._scores:
            self._scores[follow_up_queries] = self._memory.scores(self._state, self._question, follow_up_queries)
        known, turns = set(shown), self._state.turns
        ranking = (p for p in best_first(self._scores[follow_up_queries]) if turns[p].id not in known)
        return pack(self._state, ranking, budget_tokens, self._memory.count, first_number=len(shown) + 1)
