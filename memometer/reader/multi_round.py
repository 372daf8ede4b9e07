"""Reading in rounds: ask, and where the reader says that it needs more, append more lines and ask again.

Two budgets are hard, in the memory's own counter: `budget_tokens` for the memory in one prompt, and `question_budget`
for all tokens of all calls: instructions, examples, memory, question, and the longest reply allowed. The memory shown
is only ever appended to, so that a prompt's prefix is the same bytes from round to round, and prefix caches hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import dspy

from memometer.reader.signatures import ABSTENTION, LAST, NOT_LAST

MESSAGE_TOKENS, PROMPT_TOKENS = 8, 16
"""What a chat template may add to each message, and to the whole prompt."""

LEAST_NEW_TOKENS = 64
"""With less left for new lines, no further round is offered."""


class Page(Protocol):
    """Numbered lines for one prompt, whole turns: `tokens` counts `text` exactly."""

    @property
    def text(self) -> str: ...
    @property
    def tokens(self) -> int: ...
    @property
    def turn_ids(self) -> tuple[str, ...]: ...


More = Callable[[tuple[str, ...], tuple[str, ...], int], Page]
"""(lookups, turn ids already shown, budget in tokens) -> the next lines, numbered on from those already shown."""


@dataclass(frozen=True, slots=True)
class Round:
    """One call. `status` as the model said it, `offers_more` whether it could have asked for more; `context_tokens`
    is the memory in the prompt, `total_tokens` what the call took at most, `turn_ids` all that was shown by then."""

    status: str
    offers_more: bool
    lookup: str
    context_tokens: int
    total_tokens: int
    turn_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """The last round's answer. `status` is answered or absent, `cited` the turns that the reader says hold the answer,
    `text` the memory that it was shown."""

    answer: str
    status: str
    cited: tuple[str, ...]
    text: str
    rounds: tuple[Round, ...]


class QuestionBudgetTooSmall(ValueError):
    """Raised where the question budget does not hold one prompt, even without a line of memory."""


def read(
    predict: dspy.Predict,
    question: str,
    *,
    more: More,
    count: Callable[[str], int],
    rounds: int,
    budget_tokens: int,
    question_budget: int | None = None,
) -> Reading:
    """Ask `predict` (over Read, or ReadOn where there may be several rounds) until it has enough.

    Args:
        more: what to show next. Its order may change with each lookup; what was shown stays as it is.
        rounds: at most so many calls. The memory doubles from one to the next, up to `budget_tokens` in the last.
        question_budget: None leaves it to `rounds` and `budget_tokens`.

    Raises QuestionBudgetTooSmall, and whatever the call raises.
    """
    lookups: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    text = ""
    told: list[Round] = []
    left = question_budget
    for number in range(rounds):
        last = number + 1 == rounds
        most = budget_tokens >> (rounds - 1 - number)
        page, cost = _next_page(predict, question, text, shown, lookups, most=most, left=left, more=more, count=count)
        if page is None and told:
            break  # nothing new to show, or to pay for: the answer stands as it was given
        if page is None or (left is not None and cost > left):
            raise QuestionBudgetTooSmall(
                f"a prompt without memory takes {cost:,} tokens, the question may take {left:,}"
            )
        text, shown = text + page.text, shown + page.turn_ids
        # The next round costs this one's tokens again, and is worth having only if it shows something for it.
        offers = not last and (left is None or left >= 2 * cost + LEAST_NEW_TOKENS)
        reply = predict(**inputs_of(predict, text, question, offers=offers))
        asks = offers and reply.status == "more"
        lookup = str(getattr(reply, "lookup", None) or "") if asks else ""
        told.append(Round(reply.status, offers, lookup, count(text), cost, shown))
        if not asks:
            break
        lookups += (lookup,) if lookup else ()
        left = None if left is None else left - cost
    cited = dict.fromkeys(shown[line - 1] for line in reply.lines or () if 1 <= line <= len(shown))
    answer = reply.answer or ABSTENTION
    absent = reply.status == "absent" or answer == ABSTENTION
    return Reading(answer, "absent" if absent else "answered", tuple(cited), text, tuple(told))


def _next_page(
    predict: dspy.Predict,
    question: str,
    text: str,
    shown: tuple[str, ...],
    lookups: tuple[str, ...],
    *,
    most: int,
    left: int | None,
    more: More,
    count: Callable[[str], int],
) -> tuple[Page | None, int]:
    """(the next lines, what the call with them costs at most), or None where no new line fits. With no memory at all
    shown before, a page without a line is a page: the question is asked anyway."""

    def cost_of(text: str) -> int:
        # What is offered is a word or two; the longer offer is counted, so that either fits.
        return prompt_tokens(predict, inputs_of(predict, text, question, offers=True), count) + reply_tokens(predict)

    room = most - count(text)
    if left is not None:
        room = min(room, left - cost_of(text))
    while True:
        page = more(lookups, shown, max(0, room))
        cost = cost_of(text + page.text)
        over = max(count(text + page.text) - most, 0 if left is None else cost - left)
        if over <= 0 or not page.turn_ids:
            return (page if page.turn_ids or not shown else None), cost
        room = min(room, page.tokens) - over  # tokenizers may join what was counted apart


def inputs_of(predict: dspy.Predict, text: str, question: str, *, offers: bool = True) -> dict[str, str]:
    """What a predictor is given: of the three, what its signature takes."""
    inputs = {"memory": text, "question": question, "offered": NOT_LAST if offers else LAST}
    return {name: value for name, value in inputs.items() if name in predict.signature.input_fields}


def prompt_tokens(predict: dspy.Predict, inputs: dict[str, Any], count: Callable[[str], int]) -> int:
    """What a call's prompt takes, instructions and examples included, with an allowance for the chat template."""
    adapter = dspy.settings.adapter or dspy.ChatAdapter()
    messages = adapter.format(predict.signature, [dict(demo) for demo in predict.demos], inputs)
    return sum(count(str(message["content"])) + MESSAGE_TOKENS for message in messages) + PROMPT_TOKENS


def reply_tokens(predict: dspy.Predict) -> int:
    """The longest reply that the model may give. Raises ValueError where that is not bounded."""
    lm = predict.lm or dspy.settings.lm
    bounds = {**getattr(lm, "kwargs", {}), **predict.config}
    most = bounds.get("max_tokens") or bounds.get("max_completion_tokens")
    if not most:
        raise ValueError("reading needs a bound on replies; make the model with dspy.LM(..., max_tokens=N).")
    return int(most)
