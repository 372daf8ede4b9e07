"""What an answer is worth: the one figure that evaluate, optimize and train share, and what to say about it in words.

No judge is asked. For answerable questions

    answered      0.8 A + 0.2 E, or A alone where nothing is cited by design, or no evidence is labelled
    absent        0, or 0.05 where not all the evidence was shown

and for unanswerable questions: 1 where the reply abstains, else 0. A is the official F1, or 1 where answer and gold are
the same date or span of days; E is the F1 of the cited turns against the evidence that was shown. From all of it goes a
price for each thousand tokens of all calls, instructions and examples included.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from memometer.benchmarks.metrics import abstains, normalize
from memometer.benchmarks.protocol import Conversation, Question
from memometer.memory import Turn
from memometer.retrieval import dates
from memometer.retrieval.speakers import named_speaker
from memometer.retrieval.tokenize import mentions
from memometer.run.folder import Record

TOKEN_PRICE = 0.01
"""Of a thousand tokens: what one point of F1 is worth by default."""
ANSWER_WEIGHT, CITATION_WEIGHT = 0.8, 0.2
RIGHTLY_ABSENT = 0.05
RIGHT = 0.5
"""Of A, from which on an answer may be shown as an example."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a reader said, and what it was shown: turn ids, in the order of their numbers. `cited` is None where the
    prompt asks for no lines; `total_tokens` are those of all calls."""

    answer: str
    shown: tuple[str, ...]
    total_tokens: int
    absent: bool = False
    cited: tuple[str, ...] | None = None

    @classmethod
    def of_record(cls, record: Record) -> Reply:
        """From a run folder's record of an answered question."""
        return cls(
            answer=record["answer"],
            shown=tuple(record["recall"]["turn_ids"]),
            total_tokens=record["prompt_tokens"] + record["completion_tokens"],
            absent=abstains(record["answer"]),
            cited=tuple(record["citations"]) if "citations" in record else None,
        )


Judged = Callable[[Question, str], float | None]
"""(question, answer) -> 1 for correct, 0 for wrong, None for ungraded."""


@dataclass(frozen=True)
class Objective:
    """(question, reply) -> at most 1; below 0 where a wrong answer had its price.

    Args:
        token_price: what a thousand tokens cost.
        judged: a certified judge, never the one that is reported. A is then its verdict times (0.3 + 0.7 A), so that
            what only pleases it gains little.
    """

    token_price: float = TOKEN_PRICE
    judged: Judged | None = None

    def __call__(self, question: Question, reply: Reply) -> float:
        return self.quality(question, reply) - self.token_price * reply.total_tokens / 1000

    def quality(self, question: Question, reply: Reply) -> float:
        """The same before its price, 0 to 1."""
        absent = reply.absent or abstains(reply.answer)
        if not question.answerable:
            return float(absent)
        if absent:
            return 0.0 if not question.evidence or set(question.evidence) <= set(reply.shown) else RIGHTLY_ABSENT
        right = answer_score(question, reply.answer)
        if self.judged and (verdict := self.judged(question, reply.answer)) is not None:
            right = verdict * (0.3 + 0.7 * right)
        if reply.cited is None or not question.evidence:
            return right
        return ANSWER_WEIGHT * right + CITATION_WEIGHT * citation_score(question, reply)


def answer_score(question: Question, answer: str) -> float:
    """A, 0 to 1. For an unanswerable question it is 1 if the answer abstains."""
    expected = None if question.gold is None else span(question.gold)
    return 1.0 if expected and span(answer) == expected else question.score(answer)


def citation_score(question: Question, reply: Reply) -> float:
    """E: F1 of the cited turns against the evidence that was shown; 0 where none was."""
    to_find, cited = set(question.evidence) & set(reply.shown), set(reply.cited or ())
    return 2 * len(to_find & cited) / (len(to_find) + len(cited)) if to_find else 0.0


# ---------------------------------------------------------------- dates, however they are written

Span = tuple[date, date]
ANY_DAY = date(2023, 6, 1)  # of no account: what is relative to it, or needs it to know the year, is left out
_UNITS = "day|week|weekend|month|year|" + "|".join(dates.WEEKDAYS)
_BESIDE = re.compile(rf"(?:(?P<count>\w+) )?(?P<unit>{_UNITS})s? (?P<side>before|after|of) (?P<day>.+)")


def span(text: str) -> Span | None:
    """The days that a text means, first and last, where it is a date and nothing else: `7 May 2023`, `2023-05-07`,
    `in May 2023`, `2022`, `the week before 11 June 2021`, `two weekends before 19 July 2021`, `week of 1 May 2023`."""
    plain = " ".join(re.sub(r"[.,`]+(?=\s|$)|[.`]|(?<=\d)(?=[A-Z][a-z]{2})", " ", text).split())
    plain = re.sub(r"^(?:on|in|during|the|\s)+\b\s*", "", plain, flags=re.IGNORECASE)
    if beside := _BESIDE.fullmatch(plain.lower()):
        anchor = _absolute(beside["day"])
        if anchor is None or anchor[0] != anchor[1]:
            return None
        return _beside(beside["count"] or "", beside["unit"], beside["side"], anchor[0])
    return _absolute(plain)


def _absolute(text: str) -> Span | None:
    text = text.removeprefix("the ")
    if re.fullmatch(r"(?:19|20)\d\d", text):
        return date(int(text), 1, 1), date(int(text), 12, 31)
    if not re.search(r"\b(?:19|20)\d\d\b", text):
        return None  # which year is a guess
    found = dates.find(text, ANY_DAY)
    if len(found) != 1 or found[0].relative or text[: found[0].span[0]].strip() or text[found[0].span[1] :].strip():
        return None
    return found[0].start, found[0].end


def _beside(count: str, unit: str, side: str, anchor: date) -> Span | None:
    """The date rule's reading of `so many units before, after or of a day`, as if said on that day."""
    ahead = side == "after"
    if count and side != "of":
        said = f"{count} {unit}s from now" if ahead else f"{count} {unit}s ago"
    elif side == "of":
        said = f"this {unit}" if unit in ("week", "weekend") and not count else ""
    elif unit == "day":
        said = "tomorrow" if ahead else "yesterday"
    else:
        said = f"{'next' if ahead else 'last'} {unit}"
    found = dates.find(said, anchor)
    whole = len(found) == 1 and found[0].span == (0, len(said)) and found[0].precision != "about"
    return (found[0].start, found[0].end) if whole else None


# ---------------------------------------------------------------- what to say about it


def feedback(question: Question, reply: Reply, conversation: Conversation) -> str:
    """What was right and wrong about a reply, in sentences that a model can learn from. The gold answer stands in none
    of them, nor does any line of the conversation: what is learned should hold for others too."""
    turns = {turn.id: turn for turn in conversation.turns}
    absent = reply.absent or abstains(reply.answer)
    told = _on_speakers(question, reply, conversation, turns)
    if not question.answerable:
        said = (
            "Right: the memory does not hold the answer." if absent else "The memory does not hold the answer: absent."
        )
        return " ".join([said, *told])
    there = [id for id in question.evidence if id in reply.shown]
    missing = len(question.evidence) - len(there)
    lines = _numbers(there, reply)
    if absent:
        if not there:
            return "Right: the lines that hold the answer were not in memory."
        rest = f" {missing} other line(s) that it takes were not in memory: status more, where it is offered."
        return f"{lines} held the answer, and the status should be answered.{rest if missing else ''}"
    if missing and there:
        told.append(f"{missing} more line(s) that it takes were not in memory.")
    elif missing:
        told.append("The lines that hold the answer were not in memory: status more where it is offered, else absent.")
    if reply.cited is not None:
        if overlooked := [id for id in there if id not in reply.cited]:
            told.append(f"{_numbers(overlooked, reply)} held the answer, in memory, and was not cited.")
        if beside := [id for id in reply.cited if id not in question.evidence]:
            told.append(f"{_numbers(beside, reply)} was cited and does not hold the answer.")
    told.append(_on_answer(question, reply.answer))
    return " ".join(told)


def _on_answer(question: Question, answer: str) -> str:
    if answer_score(question, answer) == 1.0:
        return "The answer is right."
    expected, given = span(question.gold or ""), span(answer)
    if expected and given:
        days = (given[0] - expected[0]).days
        if days:
            return f"The date is off by {abs(days)} days: too {'late' if days > 0 else 'early'}."
        return "The date is right at its start, but the span of days is another."
    said, wanted = normalize(answer), normalize(question.gold or "")
    shared = len(set(said) & set(wanted))
    if not shared:
        return f"None of the answer's words are in the expected answer, which has {len(wanted)}."
    return f"Of the answer's {len(said)} words {shared} are in the expected answer, which has {len(wanted)}."


def _on_speakers(question: Question, reply: Reply, conversation: Conversation, turns: Mapping[str, Turn]) -> list[str]:
    """That what was taken for the answer was said by, and of, the other speaker."""
    asked_of = named_speaker(question.text, conversation.speakers)
    looked_at = question.evidence if not question.answerable else reply.cited or ()
    found = [turns[id] for id in looked_at if id in turns]
    if asked_of is None or not found or any(mentions(turn.line, asked_of) for turn in found):
        return []
    other = next(speaker for speaker in conversation.speakers if speaker != asked_of)
    end = ": absent." if not question.answerable else "."
    return [f"That was said by {other}, and the question asks about {asked_of}{end}"]


def _numbers(ids: Sequence[str], reply: Reply) -> str:
    """Turns by the numbers that their lines had."""
    numbers = [str(reply.shown.index(id) + 1) for id in ids if id in reply.shown]
    return f"Line{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"
