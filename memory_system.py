"""The token-aware adaptive memory for DSPy programs, and the names that its users need.

The memory works in five steps:

1. A conversation is a list of turns. Its remembered content is a value, a `State`, that the caller holds. So one
   memory serves many conversations, threads and optimiser runs at the same time.
2. `observe` writes turns into the state and calls no model. It stores each turn word for word, and writes the resolved
   day behind each relative date. It also updates an index of words, speakers, dates and, with an encoder, token
   vectors.
3. `recall` ranks all turns for a question with a small learned network over many signals, and packs the best turns
   into a budget. The budget is exact: the recalled text never takes more tokens, in the answering model's tokens.
4. A reader, a DSPy predictor, answers from the recalled text, in one call or in several rounds with citations. It
   answers "No information available" if the memory does not hold the answer.
5. DSPy's optimisers change the reader's prompt. The ranking weights are fitted separately. Neither changes a state.

    memory = MemorySystem()
    state = memory.new()
    memory.observe(state, turns)                                  # session by session, in time order
    recall = memory.recall(state, question, budget_tokens=2048)   # recall.tokens <= 2048, always
    memory(state=state, question=question).answer                 # read by the language model of dspy.configure

Steps 1-3 are `memometer.systems.adaptive.AdaptiveMemory`, which needs no DSPy. Step 4 is
`memometer.reader.reader.Reader`, which reads any memory system. `MemorySystem` joins the two.
"""

from __future__ import annotations

from collections.abc import Sequence

import dspy

from memometer.budget import best_first, pack, show
from memometer.memory import (
    DEFAULT_BUDGET_TOKENS,
    BudgetExceeded,
    BudgetTooSmall,
    Memory,
    Recall,
    State,
    Turn,
    TurnFormat,
)
from memometer.reader.abstention import AbstentionRule
from memometer.reader.reader import Reader
from memometer.retrieval.late_interaction import MultiVectorEncoder, Projection
from memometer.retrieval.ranker import Ranker
from memometer.systems.adaptive import AdaptiveMemory, IndexedState
from memometer.token_counters import TokenCounter, Utf8Bytes, counter_for

__all__ = [
    "DEFAULT_BUDGET_TOKENS",
    "AdaptiveMemory",
    "BudgetExceeded",
    "BudgetTooSmall",
    "IndexedState",
    "Memory",
    "MemorySystem",
    "Reader",
    "Recall",
    "State",
    "TokenCounter",
    "Turn",
    "TurnFormat",
    "Utf8Bytes",
    "best_first",
    "counter_for",
    "pack",
    "show",
]


class MemorySystem(Reader):
    """The adaptive memory and its reader as one DSPy program.

    Args:
        count: counts tokens as the answering model does; None counts with o200k_base.
        ranker: the ranking weights; None loads the shipped ones.
        encoder: adds matching by meaning (memometer/models/encoders.py); None matches by words alone.
        projection: the projection that belongs to `ranker`, if there is an encoder; None loads the shipped one.
        rounds: calls per question at most. 0 makes one call for the bare answer, 1 adds citations and a status, more
            let the model ask for more memory.
        question_budget: a hard bound on all tokens of all calls for a question; None sets no bound.
        abstention: the rule that decides when to abstain; None leaves the decision to the model.

    Attributes:
        memory: the `AdaptiveMemory`.
        read: the `dspy.Predict` that answers.
    """

    def __init__(
        self,
        *,
        count: TokenCounter | None = None,
        ranker: Ranker | None = None,
        encoder: MultiVectorEncoder | None = None,
        projection: Projection | None = None,
        rounds: int = 0,
        question_budget: int | None = None,
        abstention: AbstentionRule | None = None,
    ) -> None:
        super().__init__(rounds=rounds, question_budget=question_budget, abstention=abstention)
        self.memory = AdaptiveMemory(count=count, ranker=ranker, encoder=encoder, projection=projection)

    def new(self) -> IndexedState:
        """Return an empty state."""
        return self.memory.new()

    def observe(self, state: IndexedState, turns: Sequence[Turn]) -> None:
        """Append turns to a state, in time order. One call or many calls give the same state."""
        self.memory.observe(state, turns)

    def recall(self, state: IndexedState, question: str, budget_tokens: int = DEFAULT_BUDGET_TOKENS) -> Recall:
        """Return the text to show for a question; `tokens <= budget_tokens`, always. It does not change the state."""
        return self.memory.recall(state, question, budget_tokens)

    def forward(  # type: ignore[override]  # a Reader with a memory of its own
        self, state: IndexedState, question: str, budget_tokens: int = DEFAULT_BUDGET_TOKENS, choices: str = ""
    ) -> dspy.Prediction:
        """Recall from `state` and answer with DSPy's language model.

        Args:
            state: what this memory observed.
            question: any text.
            budget_tokens: a hard bound on the memory in one prompt.
            choices: answer options for the model; they do not influence the recall.

        Returns:
            A prediction with `answer`, `recall` and the other fields of `Reader.forward`.
        """
        return super().forward(self.memory, state, question, budget_tokens, choices)
