"""Reading in rounds: the model may ask for more memory, which is appended to its prompt before the next call.

Two budgets are hard, in the memory's own token counter. `budget_tokens` bounds the memory in one prompt.
`question_budget` bounds all tokens of all calls: instructions, examples, memory, question and the longest reply. The
memory in the prompt only grows at its end, so the start of the prompt stays the same and provider caches hold.
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
    """Call the model until it answers.

    Args:
        predict: a predictor over `CitedAnswer`, or over `MultiRound` if there may be several rounds.
        question: the question, with its answer options if there are any.
        more: returns the next lines to show. Follow-up queries may change its order; shown lines stay.
        count: counts tokens.
        rounds: upper bound on the calls. The memory doubles from one to the next, up to `budget_tokens` in the last.
        budget_tokens: a hard bound on the memory in one prompt.
        question_budget: a hard bound on all tokens of all calls; None sets no bound.

    Raises:
        QuestionBudgetTooSmall: `question_budget` does not hold one prompt.
    """
    queries: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()  # one turn id for each line
    partial: tuple[str, ...] = ()
    text = ""
    calls: list[Round] = []
    left = question_budget
    for number in range(rounds):
        last = number + 1 == rounds
        limit = budget_tokens >> (rounds - 1 - number)
        known = queries, shown, partial
        page, cost = _next_page(predict, question, text, known, limit=limit, left=left, more=more, count=count)
        if page is None and calls:
            continue  # nothing new fits this round; a later one is larger, or the last answer stays
        if page is None or (left is not None and cost > left):
            raise QuestionBudgetTooSmall(
                f"a prompt without memory takes {cost:,} tokens, but the question budget is {left:,}"
            )
        text, shown = text + page.text, shown + page.turn_ids
        partial = tuple(id for id in (*partial, *page.partial_ids) if id not in page.whole_ids)
        # The next round repeats this round's tokens, so the budget must also hold new lines.
        offers = not last and (left is None or left >= 2 * cost + MIN_NEW_TOKENS)
        reply = predict(**inputs_of(predict, text, question, offers=offers))
        wants_more = offers and reply.status == "more"
        query = str(getattr(reply, "lookup", None) or "") if wants_more else ""
        calls.append(Round(reply.status, offers, query, count(text), cost, tuple(dict.fromkeys(shown)), partial))
        if not wants_more:
            break
        queries += (query,) if query else ()
        left = None if left is None else left - cost
    citations = dict.fromkeys(shown[line - 1] for line in reply.lines or () if 1 <= line <= len(shown))
    answer = reply.answer or ABSTENTION
    absent = reply.status == "absent" or answer == ABSTENTION
    return MultiRoundAnswer(answer, "absent" if absent else "answered", tuple(citations), text, tuple(calls))


def _next_page(
    predict: dspy.Predict,
    question: str,
    text: str,
    known: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]],
    *,
    limit: int,
    left: int | None,
    more: NextPage,
    count: Callable[[str], int],
) -> tuple[Recall | None, int]:
    """Return the next lines and the cost of the call with them; None if no new line fits.

    In the first round a page may be empty, because the question is asked in any case.
    """

    def cost_of(text: str) -> int:
        # The offered statuses are a few words; the longer list is counted, so that either fits.
        return prompt_tokens(predict, inputs_of(predict, text, question, offers=True), count) + reply_tokens(predict)

    room = limit - count(text)
    if left is not None:
        room = min(room, left - cost_of(text))
    while True:
        page = more(*known, max(0, room))
        cost = cost_of(text + page.text)
        excess = max(count(text + page.text) - limit, 0 if left is None else cost - left)
        if excess <= 0 or not page.turn_ids:
            return (page if page.turn_ids or not text else None), cost
        room = min(room, page.tokens) - excess  # a tokenizer may join texts that were counted separately


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
    messages = adapter.format(predict.signature, [dict(demo) for demo in predict.demos], inputs)
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
