"""The token-aware adaptive memory: all turns, a learned probability of being evidence, and an exact budget.

The budget is spent where the expected evidence per token is highest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from memometer.budget import EXCERPT_SHARE, best_first, pack
from memometer.memory import Memory, Recall, State, Turn
from memometer.retrieval import dates, late_interaction
from memometer.retrieval.features import POOL, Features, features
from memometer.retrieval.late_interaction import Projection, TokenVectors
from memometer.retrieval.ranker import Ranker, shipped
from memometer.retrieval.ranker import load as load_ranker
from memometer.retrieval.speakers import named_speaker, speaker_gap
from memometer.retrieval.statements import arranged
from memometer.retrieval.turn_index import TurnIndex
from memometer.token_counters import TokenCounter

EXCERPT_CREDIT = 0.3
"""Value of an excerpt, as a share of the value of the whole turn. On synthetic conversations any value up to 0.5 gives
the same recall; a smaller one leaves more of a small budget to whole turns."""

NUMBER_TOKENS = 16
"""Upper bound of the tokens of a line's number."""


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
        ranking: the shipped weights to load: `default`, fitted on synthetic conversations, or `locomo`, fitted on
            LOCOMO's training conversations (non-commercial).
        encoder: adds matching by meaning (memometer/models/encoders.py); None matches by words alone.
        projection: the projection that the ranker was fitted with, if there is an encoder; None for the identity.
            A state holds vectors of its projection and must be read with the same one.
    """

    state_type = IndexedState
    reads_in_rounds = True
    takes_token_encoder = True
    takes_ranking = True
    recall_only_computes = True

    def __init__(
        self,
        *,
        count: TokenCounter | None = None,
        ranker: Ranker | None = None,
        ranking: str = "default",
        encoder: late_interaction.MultiVectorEncoder | None = None,
        projection: Projection | None = None,
    ) -> None:
        super().__init__(count=count)
        self.ranker = ranker
        self.ranking = ranking
        self.encoder = encoder
        self.projection = projection
        self._asker: str | None = None

    def asked_by(self: Self, asker: str) -> Self:
        """Return a copy that shows the turns which a person may be shown."""
        other = copy(self)
        other._asker = asker
        return other

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
        return self.ranker or load_ranker(shipped(self.ranking))

    def _projection(self) -> Projection:
        assert self.encoder
        projection = self.projection or Projection.identity(self.encoder.dimensions)
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
            texts = [late_interaction.documents(turn) for turn in turns]
            compact = iter(self.encoder.compact([text for each in texts for text in each], projection))
            projection.append(state.vectors, [projection.joined([next(compact) for _ in each]) for each in texts])
        super().observe(state, turns)

    def features(self, state: IndexedState, question: str) -> Features:
        """Return the ranking features of the turns for a question, before any weights."""
        if not self.encoder:
            return features(state.index, question)
        # In a long history, tokens are compared only in turns that the words, speakers or dates select.
        near = features(state.index, question).positions if len(state.index) > POOL else None
        return features(state.index, question, self._similarities(state, question, near))

    def scores(self, state: IndexedState, question: str, follow_up_queries: Sequence[str] = ()) -> np.ndarray:
        """Return the score of each turn, shape (turns,), higher is better: the maximum over the question and the
        follow-up queries."""
        if not state.turns:
            return np.zeros(0, np.float32)
        weights = self._ranker()
        queries = (question, *follow_up_queries)
        return np.max([self._scores(weights, state, query) for query in queries], axis=0)

    def _scores(self, weights: Ranker, state: IndexedState, query: str) -> np.ndarray:
        """Score the turns for one query. Weights without an encoder's features get its similarity as a bonus."""
        if not self.encoder or "both" in weights.names:
            return weights.scores(self.features(state, query))
        words = features(state.index, query)
        near = words.positions if len(state.index) > POOL else None
        return weights.scores(words, self._similarities(state, query, near)["both"])

    def _similarities(
        self, state: IndexedState, query: str, positions: np.ndarray | None
    ) -> dict[str, late_interaction.Floats]:
        assert self.encoder
        projection = self._projection()
        (asked,) = self.encoder.compact([query], projection)
        return projection.similarities(state.vectors, asked, positions=positions)

    def recall(self, state: IndexedState, question: str, budget_tokens: int) -> Recall:
        scores = self.scores(state, question)
        ranking = self.ranking_of(state, question, self.values(state, scores, budget_tokens))
        recall = pack(state, ranking, budget_tokens, self.count, question=question, form=self.form)
        return replace(recall, speaker_gap=self.speaker_gap(state, question, scores))

    def ranking_of(self, state: IndexedState, question: str, values: np.ndarray) -> Iterator[int]:
        """Yield the positions of the turns to show, the best first: superseded statements and contradictions by third
        parties are moved down (memometer/retrieval/statements.py)."""
        turns, asker = state.turns, self._asker
        ranking = best_first(values)
        if asker is not None:
            ranking = (position for position in ranking if turns[position].may_be_shown_to(asker))
        return arranged(turns, ranking, question)

    def values(self, state: IndexedState, scores: np.ndarray, budget_tokens: int) -> np.ndarray:
        """Return the logarithm of the expected evidence per token of each turn, shape (turns,).

        A turn that is longer than the budget is shown as an excerpt, so its cost is that of the largest excerpt, and
        its value is EXCERPT_CREDIT of the whole turn's.

        Args:
            state: the state.
            scores: log-probabilities from `scores`.
            budget_tokens: the budget.
        """
        costs = np.array(state.line_tokens, np.float32)
        is_long = costs > budget_tokens
        costs[is_long] = max(1, budget_tokens // EXCERPT_SHARE)
        return (
            scores
            + np.where(is_long, np.log(EXCERPT_CREDIT), 0.0)
            - self._ranker().cost_exponent * np.log(np.maximum(costs, 1))
        )

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

    def __call__(
        self,
        follow_up_queries: tuple[str, ...],
        shown: tuple[str, ...],
        partial: tuple[str, ...],
        budget_tokens: int,
    ) -> Recall:
        """Return the next page as numbered lines.

        Args:
            follow_up_queries: further queries of the reader; they count as much as the question.
            shown: the turn id of each line shown already; the new lines continue their numbers.
            partial: the turns of which only an excerpt was shown; they are shown again if they fit as a whole.
            budget_tokens: a hard bound on this page.
        """
        if follow_up_queries not in self._scores:
            self._scores[follow_up_queries] = self._memory.scores(self._state, self._question, follow_up_queries)
        turns = self._state.turns
        known = set(shown) - {id for id in partial if self._fits(id, budget_tokens)}
        values = self._memory.values(self._state, self._scores[follow_up_queries], budget_tokens)
        ranked = self._memory.ranking_of(self._state, self._question, values)
        ranking = (position for position in ranked if turns[position].id not in known)
        return pack(
            self._state,
            ranking,
            budget_tokens,
            self._memory.count,
            question=self._question,
            first_number=len(shown) + 1,
        )

    def _fits(self, id: str, budget_tokens: int) -> bool:
        """Return True if a whole turn fits a page of its own, with its date line and its number."""
        state = self._state
        position = next(n for n, turn in enumerate(state.turns) if turn.id == id)
        header = state.header_tokens[state.turns[position].day]
        return state.line_tokens[position] + header + NUMBER_TOKENS <= budget_tokens
