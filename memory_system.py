"""The one interface of every memory system, the exact budget, and the token-aware adaptive memory.

What is remembered is a value (`State`) that the caller holds; what remembers is code (`Memory`):

    memory = MemorySystem(count=counter)
    state = memory.new()
    memory.observe(state, turns)                                  # session by session, in time order
    recall = memory.recall(state, question, budget_tokens=2048)   # recall.tokens <= 2048, always
    memory(state=state, question=question).answer                 # the same, read by dspy's language model

A new memory system is a subclass with one method, `recall`, and a line in `memometer/systems/__init__.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import ClassVar, Generic, TypeVar, cast

import dspy
import numpy as np

from memometer.budget import (
    DEFAULT_BUDGET_TOKENS,
    BudgetExceeded,
    BudgetTooSmall,
    Form,
    Recall,
    State,
    TokenCounter,
    Turn,
    Utf8Bytes,
    best_first,
    pack,
    show,
)
from memometer.reader.abstention import Rule, Signals, gap, named_speaker
from memometer.reader.multi_round import read
from memometer.reader.signatures import ABSTENTION, ANSWER_EXAMPLES, READ_EXAMPLES, Answer, Read, ReadOn
from memometer.retrieval import dates, late_interaction
from memometer.retrieval.features import POOL, Features, features
from memometer.retrieval.late_interaction import TokenMap, TokenVectors
from memometer.retrieval.ranker import SHIPPED, SHIPPED_WITH_ENCODER, Ranker
from memometer.retrieval.ranker import load as load_ranker
from memometer.retrieval.tokenize import names
from memometer.retrieval.turn_index import Index

__all__ = [
    "DEFAULT_BUDGET_TOKENS",
    "BudgetExceeded",
    "BudgetTooSmall",
    "Form",
    "IndexedState",
    "Memory",
    "MemorySystem",
    "Recall",
    "State",
    "TokenCounter",
    "Turn",
    "Utf8Bytes",
    "best_first",
    "pack",
    "show",
]


S = TypeVar("S", bound=State)


class Memory(dspy.Module, Generic[S]):
    """Code that remembers; it holds parameters only, so one instance serves all conversations and threads.

    Args:
        count: counts tokens as the answering model does; every budget is measured with it.
    """

    state_type: ClassVar[type[State]] = State
    """What `new` makes."""

    shows_everything: ClassVar[bool] = False
    """True for a system that is given the reader's whole window instead of the budget."""

    needs_model: ClassVar[bool] = False
    """True for a system whose `observe` calls dspy's language model."""

    needs_encoder: ClassVar[bool] = False
    """True for a system that is nothing without an `encoder` (memometer/models/encoders.py)."""

    takes_token_encoder: ClassVar[bool] = False
    """True for a system that takes one that gives token vectors, and does without."""

    reads_in_rounds: ClassVar[bool] = False
    """True for a system that takes `rounds`, `question_budget` and `abstention`."""

    takes_memory_url: ClassVar[bool] = False
    """True for a system that takes `memory_url`, and then keeps its episodes in that store (memometer/store/)."""

    shows_turns: ClassVar[bool] = True
    """False for a system that shows what a model wrote, which has no fields to print in another form."""

    form: Form | None = None
    """How turns are printed; None for lines under dates."""

    rounds = 0
    """How often the reader may be asked for lines, status and answer; 0 asks once, for the bare answer."""

    def __init__(self, *, count: TokenCounter | None = None) -> None:
        super().__init__()
        self.count: TokenCounter = count or Utf8Bytes()
        self.read = dspy.Predict(Answer)
        self.read.demos = list(ANSWER_EXAMPLES)

    @property
    def fitted_on(self) -> tuple[str, ...]:
        """Conversations whose labels its weights were fitted to: what it recalls of those proves nothing."""
        return ()

    def new(self) -> S:
        """An empty state."""
        return cast(S, self.state_type())

    def line(self, turn: Turn) -> str:
        """How a turn is shown: one line, ending in a newline."""
        return turn.line

    def observe(self, state: S, turns: Sequence[Turn]) -> None:
        """Append turns, in time order. Observing in one call or in many gives the same state."""
        for turn in turns:
            line = self.line(turn)
            state.turns.append(turn)
            state.lines.append(line)
            state.line_tokens.append(cost := self.count(line))
            state.least_line_tokens = min(state.least_line_tokens or cost, cost)
            if turn.session not in state.header_tokens:
                state.header_tokens[turn.session] = self.count(turn.header)

    def recall(self, state: S, question: str, budget_tokens: int) -> Recall:
        """What to show for `question`. Reads only; `Recall.tokens <= budget_tokens`, always."""
        raise NotImplementedError(f"{type(self).__name__} must define recall")

    def checked_recall(self, state: S, question: str, budget_tokens: int) -> Recall:
        """`recall`, counted again. Raises BudgetExceeded where a system broke its promise."""
        recall = self.recall(state, question, budget_tokens)
        tokens = self.count(recall.text)
        if tokens > budget_tokens or tokens != recall.tokens:
            raise BudgetExceeded(
                f"{type(self).__name__} shows {tokens} tokens, says {recall.tokens}, and may show {budget_tokens}"
            )
        return recall

    def forward(
        self, state: S, question: str, budget_tokens: int = DEFAULT_BUDGET_TOKENS, choices: str = ""
    ) -> dspy.Prediction:
        """Recall, then let dspy's language model answer: the same prompt for every memory system.

        `choices` are answer options shown to the reader; they play no part in the recall.
        Returns a prediction with `answer` (text) and `recall`.
        """
        recall = self.checked_recall(state, question, budget_tokens)
        asked = f"{question} {choices}" if choices else question
        return dspy.Prediction(answer=self.read(memory=recall.text, question=asked).answer, recall=recall)


# ---------------------------------------------------------------- the adaptive memory


@dataclass
class IndexedState(State):
    """A State beside what is known of each turn for ranking."""

    index: Index = field(default_factory=Index)
    vectors: TokenVectors = field(default_factory=TokenVectors)


class MemorySystem(Memory[IndexedState]):
    """The token-aware adaptive memory: every turn is kept as it was said, the dates that it means written behind its
    words; turns are ranked by learned weights over many signals, and packed exactly into the budget. Writing calls no
    model.

    Args:
        ranker: how turns are ranked; None for the weights that come with the project.
        encoder: matches by meaning as well (memometer/models/encoders.py); None matches by words alone.
        token_map: what the ranker was fitted with, where there is an encoder; None for the one that comes with the
            project. A state holds vectors of its map: it is read with the map that wrote it.
        rounds: how often the reader may be asked, with lines to cite and a status
        (`memometer.reader.signatures.Read`), and
            with more memory each time that it asks for more; 0 asks once for the bare answer, as every system does.
        question_budget: a hard bound on all tokens of all rounds of a question; None leaves it to the rounds.
        abstention: when to abstain; None leaves it to what the reader says.
    """

    state_type = IndexedState
    reads_in_rounds = True
    takes_token_encoder = True

    def __init__(
        self,
        *,
        count: TokenCounter | None = None,
        ranker: Ranker | None = None,
        encoder: late_interaction.Encoder | None = None,
        token_map: TokenMap | None = None,
        rounds: int = 0,
        question_budget: int | None = None,
        abstention: Rule | None = None,
    ) -> None:
        super().__init__(count=count)
        self.ranker = ranker
        self.encoder = encoder
        self.token_map = token_map
        self.abstention = abstention
        self.rounds = rounds
        self.question_budget = question_budget
        if rounds:
            signature = ReadOn if rounds > 1 else Read
            self.read = dspy.Predict(signature)
            self.read.demos = list(READ_EXAMPLES[signature])

    @property
    def fitted_on(self) -> tuple[str, ...]:
        mapped = self._token_map().fitted_on if self.encoder else ()
        return tuple(dict.fromkeys((*self._ranker().fitted_on, *mapped)))

    def with_weights(self, ranker: Ranker, token_map: TokenMap | None = None) -> MemorySystem:
        """The same memory with other weights."""
        other = copy(self)
        other.ranker, other.token_map = ranker, token_map
        return other

    def _ranker(self) -> Ranker:
        return self.ranker or load_ranker(SHIPPED_WITH_ENCODER if self.encoder else SHIPPED)

    def _token_map(self) -> TokenMap:
        token_map = self.token_map or late_interaction.load(late_interaction.SHIPPED)
        assert self.encoder
        if token_map.encoder not in ("", self.encoder.name):
            raise ValueError(
                f"the map of token vectors is for {token_map.encoder}, the encoder is {self.encoder.name}; make one "
                "with python optimize.py --target retrieval --encoder NAME --out FOLDER."
            )
        return token_map

    def line(self, turn: Turn) -> str:
        dated = replace(turn, text=dates.marked(turn.text, turn.said_at.date()))
        return dated.line

    def observe(self, state: IndexedState, turns: Sequence[Turn]) -> None:
        state.index.add(turns)
        if self.encoder:
            token_map = self._token_map()
            token_map.append(
                state.vectors, self.encoder.compact([late_interaction.document(turn) for turn in turns], token_map)
            )
        super().observe(state, turns)

    def scores(self, state: IndexedState, question: str, lookups: Sequence[str] = ()) -> np.ndarray:
        """How well each turn fits, shape (turns,), higher is better: the best over the question and the lookups."""
        if not state.turns:
            return np.zeros(0, np.float32)
        weights = self._ranker()
        return np.max([weights.scores(self.features(state, asked)) for asked in (question, *lookups)], axis=0)

    def features(self, state: IndexedState, question: str) -> Features:
        """What is known of the turns for a question, before any weights."""
        if not self.encoder:
            return features(state.index, question)
        token_map = self._token_map()
        (asked,) = self.encoder.compact([question], token_map)
        # Of a long history, tokens are compared only where the words, or who speaks when, give reason to look.
        near = features(state.index, question).positions if len(state.index) > POOL else None
        return features(state.index, question, token_map.similarities(state.vectors, asked, positions=near))

    def recall(self, state: IndexedState, question: str, budget_tokens: int) -> Recall:
        scores = self.scores(state, question)
        recall = pack(state, best_first(scores), budget_tokens, self.count, form=self.form)
        return replace(recall, speaker_gap=_speaker_gap(state.index, question, scores))

    def forward(
        self, state: IndexedState, question: str, budget_tokens: int = DEFAULT_BUDGET_TOKENS, choices: str = ""
    ) -> dspy.Prediction:
        """As Memory's, with abstention: `said` is what the reader replied, `answer` that or "No information available",
        `signals` and `abstention_score` (None without a rule) what decided it. With `rounds`, the prediction also has
        `status` (answered or absent), `cited` (turn ids) and `rounds` (one `Round` a call)."""
        attributed = None
        if self.rounds:
            prediction = self._read_in_rounds(state, question, budget_tokens, choices)
            absent = prediction.status == "absent"
            attributed = self._attributed(state, question, prediction.cited)
        else:
            prediction = super().forward(state, question, budget_tokens, choices)
            absent = ABSTENTION.lower() in prediction.answer.lower()
        prediction.said = prediction.answer
        prediction.signals = Signals(absent, attributed, prediction.recall.speaker_gap)
        rule = self.abstention
        prediction.abstention_score = rule.score(prediction.signals) if rule else None
        if rule.abstains(prediction.signals) if rule else self.rounds and absent:
            prediction.answer = ABSTENTION
        return prediction

    def _read_in_rounds(self, state: IndexedState, question: str, budget_tokens: int, choices: str) -> dspy.Prediction:
        scores: dict[tuple[str, ...], np.ndarray] = {(): self.scores(state, question)}

        def more(lookups: tuple[str, ...], shown: tuple[str, ...], budget_tokens: int) -> Recall:
            known = set(shown)
            if lookups not in scores:
                scores[lookups] = self.scores(state, question, lookups)
            ranking = (p for p in best_first(scores[lookups]) if state.turns[p].id not in known)
            return pack(state, ranking, budget_tokens, self.count, first_number=len(shown) + 1)

        reading = read(
            self.read,
            f"{question} {choices}" if choices else question,
            more=more,
            count=self.count,
            rounds=self.rounds,
            budget_tokens=budget_tokens,
            question_budget=self.question_budget,
        )
        gap = _speaker_gap(state.index, question, scores[()])
        shown = Recall(reading.text, self.count(reading.text), reading.rounds[-1].turn_ids, speaker_gap=gap)
        return dspy.Prediction(
            answer=reading.answer,
            recall=shown,
            status=reading.status,
            cited=reading.cited,
            rounds=reading.rounds,
        )

    def _attributed(self, state: IndexedState, question: str, cited: Sequence[str]) -> bool | None:
        named = named_speaker(question, state.index.speakers)
        turns = [turn for turn in state.turns if turn.id in cited]
        return any(names(turn.line, named) for turn in turns) if named and turns else None


def _speaker_gap(index: Index, question: str, scores: np.ndarray) -> float | None:
    named = named_speaker(question, index.speakers)
    return None if named is None else gap(scores, np.array(index.speaker) == index.speakers.index(named))
