"""Reading in rounds: the model may ask for more memory, which follows in a further message of the same conversation.

Two budgets are hard, in the memory's own token counter. `budget_tokens` bounds the memory in one prompt.
`question_budget` bounds all tokens of all calls: instructions, examples, memory, question and the longest reply. Each
call begins with the messages of the call before it and its reply, so provider caches hold, and the calls of a question
are one sequence for a trainer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dspy

from memometer.memory import Recall
from memometer.reader.signatures import ABSTENTION, LAST, NOT_LAST

MESSAGE_TOKENS, PROMPT_TOKENS = 8, 16
"""Upper bounds of what a chat template adds to each message, and to the whole prompt."""

MIN_NEW_TOKENS = 64
"""A further round is offered only if at least this many tokens are left for new lines."""

NextPage = Callable[[tuple[str, ...], tuple[str, ...], tuple[str, ...], int], Recall]
"""(follow-up queries, the turn id of each line already shown, turn ids shown in part, budget in tokens) -> the next
lines, whose numbers continue those of the shown lines."""


@dataclass(frozen=True, slots=True)
class Round:
    """One call of the model.

    Attributes:
        status: the status that the model replied.
        offers_more: True if the model could ask for more memory.
        lookup: the model's follow-up query; empty for none.
        context_tokens: tokens of memory in the prompt.
        total_tokens: upper bound of the tokens of the call.
        turn_ids: all turns shown so far.
        partial_ids: those of which only an excerpt was shown.
    """

    status: str
    offers_more: bool
    lookup: str
    context_tokens: int
    total_tokens: int
    turn_ids: tuple[str, ...]
    partial_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MultiRoundAnswer:
    """The answer of the last round.

    Attributes:
        answer: the answer.
        status: answered or absent.
        citations: the turns that the model cites.
        text: all memory that it was shown.
        rounds: one per call.
    """

    answer: str
    status: str
    citations: tuple[str, ...]
    text: str
    rounds: tuple[Round, ...]


class QuestionBudgetTooSmall(ValueError):
    """The question budget does not hold one prompt, even without memory."""


def answer_in_rounds(
    predict: dspy.Predict,
    question: str,
    *,
    more: NextPage,
    count: Callable[[str], int],
    rounds: int,
    budget_tokens: int,
    question_budget: int | None = None,
) -> MultiRoundAnswer:
    """Call the model until it answers. The arguments are those of `Reading`.

    Raises:
        QuestionBudgetTooSmall: `question_budget` does not hold one prompt.
    """
    reading = Reading(
        predict,
        question,
        more=more,
        count=count,
        rounds=rounds,
        budget_tokens=budget_tokens,
        question_budget=question_budget,
    )
    while reading.take(predict(**reading.inputs)):
        pass
    return reading.answer()


class Reading:
    """The calls for one question. It does not call a model: the caller does, with `inputs`, and passes the reply on.

    A further call repeats the messages of the calls before, with their replies, and adds a message with the new lines.

    Args:
        predict: a predictor over `CitedAnswer`, or over `MultiRound` if there may be several rounds.
        question: the question, with its answer options if there are any.
        more: returns the next lines to show. Follow-up queries may change its order; shown lines stay.
        count: counts tokens.
        rounds: upper bound on the calls. The memory doubles from one to the next, up to `budget_tokens` in the last.
        budget_tokens: a hard bound on the memory in one prompt.
        question_budget: a hard bound on all tokens of all calls; None sets no bound.

    Attributes:
        inputs: the keyword arguments of the next call of `predict`.
        offers_more: True if the reply to this call may ask for more memory.
        shown: the turn id of each line shown so far.
        text: all memory shown so far.
        calls: the calls made so far.

    Raises:
        QuestionBudgetTooSmall: `question_budget` does not hold one prompt.
    """

    def __init__(
        self,
        predict: dspy.Predict,
        question: str,
        *,
        more: NextPage,
        count: Callable[[str], int],
        rounds: int,
        budget_tokens: int,
        question_budget: int | None = None,
    ) -> None:
        self._predict, self._question, self._more, self._count = predict, question, more, count
        self._rounds, self._budget, self._left = rounds, budget_tokens, question_budget
        self._queries: tuple[str, ...] = ()
        self._history: list[dict[str, Any]] = []
        self._reply: Any = None
        self._cost = self._number = 0
        self._partial: tuple[str, ...] = ()
        self.inputs: dict[str, Any] = {}
        self.offers_more = False
        self.shown: tuple[str, ...] = ()
        self.text = ""
        self.calls: list[Round] = []
        page, cost = self._next_page()
        if question_budget is not None and cost > question_budget:
            raise QuestionBudgetTooSmall(
                f"a prompt without memory takes {cost:,} tokens, but the question budget is {question_budget:,}"
            )
        self._show(page, cost)

    def take(self, reply: Any) -> bool:
        """Record the model's reply to `inputs`.

        Args:
            reply: the outputs of `predict`, as attributes.

        Returns:
            True if another call follows, with the new `inputs`.
        """
        self._reply = reply
        wants_more = self.offers_more and reply.status == "more"
        query = str(getattr(reply, "lookup", None) or "") if wants_more else ""
        context, shown = self._count(self.text), tuple(dict.fromkeys(self.shown))
        self.calls.append(Round(reply.status, self.offers_more, query, context, self._cost, shown, self._partial))
        if not wants_more:
            return False
        self._queries += (query,) if query else ()
        self._left = None if self._left is None else self._left - self._cost
        asked = {name: value for name, value in self.inputs.items() if name != "demos"}
        replied = {name: getattr(reply, name, None) for name in self._predict.signature.output_fields}
        self._history.append({**asked, **replied, "answer": reply.answer or ABSTENTION})
        while self._number + 1 < self._rounds:
            self._number += 1
            page, cost = self._next_page()
            if page.turn_ids and (self._left is None or cost <= self._left):
                self._show(page, cost)
                return True
        return False  # nothing new fits, also in the last round: the last answer stays

    def answer(self) -> MultiRoundAnswer:
        """Return the answer of the last reply."""
        reply, shown = self._reply, self.shown
        citations = dict.fromkeys(shown[line - 1] for line in reply.lines or () if 1 <= line <= len(shown))
        answer = reply.answer or ABSTENTION
        absent = reply.status == "absent" or answer == ABSTENTION
        return MultiRoundAnswer(
            answer, "absent" if absent else "answered", tuple(citations), self.text, tuple(self.calls)
        )

    def _next_page(self) -> tuple[Recall, int]:
        """Return the next lines, which may be none, and the cost of the call with them."""
        limit = self._budget >> (self._rounds - 1 - self._number)
        room = limit - self._count(self.text)
        if self._left is not None:
            room = min(room, self._left - self._cost_with(""))
        while True:
            page = self._more(self._queries, self.shown, self._partial, max(0, room))
            cost = self._cost_with(page.text)
            excess = max(self._count(self.text + page.text) - limit, 0 if self._left is None else cost - self._left)
            if excess <= 0 or not page.turn_ids:
                return page, cost
            room = min(room, page.tokens) - excess  # a tokenizer may join texts that were counted separately

    def _show(self, page: Recall, cost: int) -> None:
        self.text, self.shown, self._cost = self.text + page.text, self.shown + page.turn_ids, cost
        self._partial = tuple(id for id in (*self._partial, *page.partial_ids) if id not in page.whole_ids)
        last = self._number + 1 == self._rounds
        # A further call repeats this one with its reply, asks again, and must have room for new lines.
        further = 2 * cost + self._repeated() + MIN_NEW_TOKENS
        self.offers_more = not last and (self._left is None or self._left >= further)
        self.inputs = self._inputs(page.text, offers=self.offers_more)

    def _inputs(self, page: str, *, offers: bool) -> dict[str, Any]:
        inputs: dict[str, Any] = dict(inputs_of(self._predict, page, self._question, offers=offers))
        return inputs | ({"demos": [*self._predict.demos, *self._history]} if self._history else {})

    def _cost_with(self, page: str) -> int:
        # The offered statuses are a few words; the longer list is counted, so that either fits.
        inputs = self._inputs(page, offers=True)
        return prompt_tokens(self._predict, inputs, self._count) + reply_tokens(self._predict)

    def _repeated(self) -> int:
        """Upper bound of what a further call adds to this one: the reply, and a message without new lines."""
        if self._left is None:
            return 0
        empty = inputs_of(self._predict, "", self._question)
        return reply_tokens(self._predict) + prompt_tokens(self._predict, {**empty, "demos": []}, self._count)


def inputs_of(predict: dspy.Predict, text: str, question: str, *, offers: bool = True) -> dict[str, str]:
    """Return the inputs that the signature of a predictor has.

    Args:
        predict: the predictor.
        text: the memory.
        question: the question.
        offers: True if another round may follow.
    """
    inputs = {"memory": text, "question": question, "offered": NOT_LAST if offers else LAST}
    return {name: value for name, value in inputs.items() if name in predict.signature.input_fields}


def prompt_tokens(predict: dspy.Predict, inputs: dict[str, Any], count: Callable[[str], int]) -> int:
    """Count the tokens of a call's prompt: instructions, examples, inputs, and an allowance for the chat template."""
    adapter = dspy.settings.adapter or dspy.ChatAdapter()
    values = dict(inputs)
    demos = values.pop("demos", predict.demos)
    messages = adapter.format(predict.signature, [dict(demo) for demo in demos], values)
    return sum(count(str(message["content"])) + MESSAGE_TOKENS for message in messages) + PROMPT_TOKENS


def reply_tokens(predict: dspy.Predict) -> int:
    """Return the bound on the model's reply.

    Raises:
        ValueError: the model has none.
    """
    lm = predict.lm or dspy.settings.lm
    bounds = {**getattr(lm, "kwargs", {}), **predict.config}
    bound = bounds.get("max_tokens") or bounds.get("max_completion_tokens")
    if not bound:
        raise ValueError("the reader needs a bound on replies; create the model with dspy.LM(..., max_tokens=N).")
    return int(bound)
