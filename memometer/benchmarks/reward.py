"""The objective that evaluate, optimize and train share: quality of an answer minus a price for its tokens.

Quality of the reply to an answerable question:

    answered      0.8 A + 0.2 E, or A alone if the prompt asks for no citations or no evidence is labelled
    absent        0, or 0.05 if some evidence was not shown

Quality of the reply to an unanswerable question: 1 if it abstains, otherwise 0.

A is the F1, with precision also for lists, or 1 if answer and gold answer are the same date or date range. E is the F1
of the cited turns against the evidence that was shown. The price is proportional to the tokens of all calls, including
instructions and examples. `feedback` describes the faults of a reply in words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from memometer.benchmarks.metrics import abstains, list_f1, normalize
from memometer.benchmarks.protocol import Conversation, Question
from memometer.memory import Turn
from memometer.retrieval import dates
from memometer.retrieval.date_ranges import WEEKDAYS
from memometer.retrieval.speakers import named_speaker
from memometer.retrieval.tokenize import mentions
from memometer.run.folder import Record

TOKEN_PRICE = 0.01
"""Default price of a thousand tokens, in units of the objective: 0.01 is one point of F1."""
ANSWER_WEIGHT, CITATION_WEIGHT = 0.8, 0.2
RIGHTLY_ABSENT = 0.05
"""Quality of an abstention if some evidence was not shown."""
RIGHT = 0.5
"""Answers with a lower score are not used as examples."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A reader's reply, and the turns that it was shown.

    Attributes:
        answer: The answer.
        shown: Ids of the turns in the prompt, in the order of their line numbers.
        total_tokens: Tokens of all calls.
        absent: True if the reader reports that the memory does not contain the answer.
        cited: Ids of the cited turns; None if the prompt asks for no citations.
    """

    answer: str
    shown: tuple[str, ...]
    total_tokens: int
    absent: bool = False
    cited: tuple[str, ...] | None = None

    @classmethod
    def of_record(cls, record: Record) -> Reply:
        """Create it from the record of an answered question in a run folder."""
        return cls(
            answer=record["answer"],
            shown=tuple(record["recall"]["turn_ids"]),
            total_tokens=record["prompt_tokens"] + record["completion_tokens"],
            absent=abstains(record["answer"]),
            cited=tuple(record["citations"]) if "citations" in record else None,
        )


Judged = Callable[[Question, str], float | None]
"""(question, answer) -> 1 for correct, 0 for wrong, None if the label is missing."""


@dataclass(frozen=True)
class Objective:
    """Computes the objective of a reply: at most 1, and below 0 if the price exceeds the quality.

    Args:
        token_price: Price of a thousand tokens.
        judged: A calibrated judge, different from the one whose metrics are reported. A becomes its verdict times
            (0.3 + 0.7 A), so that an answer that only satisfies this judge gains little.
    """

    token_price: float = TOKEN_PRICE
    judged: Judged | None = None

    def __call__(self, question: Question, reply: Reply) -> float:
        """Return the quality of a reply minus the price of its tokens."""
        return self.quality(question, reply) - self.token_price * reply.total_tokens / 1000

    def quality(self, question: Question, reply: Reply) -> float:
        """Return the quality of a reply in [0, 1], without the price of its tokens."""
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
    """Return A in [0, 1]. For an unanswerable question it is 1 if the answer abstains."""
    expected = None if question.gold is None else span(question.gold)
    return 1.0 if expected and span(answer) == expected else balanced_f1(question, answer)


def balanced_f1(question: Question, answer: str) -> float:
    """Return the benchmark's score of an answer, in [0, 1], with precision also for lists.

    The official score of a list ignores wrong items. A model that is trained on it learns to add words.
    """
    if question.gold_is_list:
        return list_f1(answer, question.reference)
    return question.score(answer)


def citation_score(question: Question, reply: Reply) -> float:
    """Return E, the F1 of the cited turns against the evidence that was shown; 0 if none was shown."""
    evidence, cited = set(question.evidence) & set(reply.shown), set(reply.cited or ())
    return 2 * len(evidence & cited) / (len(evidence) + len(cited)) if evidence else 0.0


# ---------------------------------------------------------------- dates in any notation

Span = tuple[date, date]
ANY_DAY = date(2023, 6, 1)  # any date will do, because dates that depend on it are skipped
_UNITS = "day|week|weekend|month|year|" + "|".join(WEEKDAYS)
_RELATIVE = re.compile(rf"(?:(?P<count>\w+) )?(?P<unit>{_UNITS})s? (?P<side>before|after|of) (?P<day>.+)")


def span(text: str) -> Span | None:
    """Parse a text that is a date and nothing else.

    Args:
        text: Such as `7 May 2023`, `2023-05-07`, `in May 2023`, `2022`, `the week before 11 June 2021`, `two weekends
            before 19 July 2021` or `week of 1 May 2023`.

    Returns:
        The first and the last day; None if the text is not a single date.
    """
    plain = " ".join(re.sub(r"[.,`]+(?=\s|$)|[.`]|(?<=\d)(?=[A-Z][a-z]{2})", " ", text).split())
    plain = re.sub(r"^(?:on|in|during|the|\s)+\b\s*", "", plain, flags=re.IGNORECASE)
    if match := _RELATIVE.fullmatch(plain.lower()):
        anchor = _absolute(match["day"])
        if anchor is None or anchor[0] != anchor[1]:
            return None
        return _relative(match["count"] or "", match["unit"], match["side"], anchor[0])
    return _absolute(plain)


def _absolute(text: str) -> Span | None:
    text = text.removeprefix("the ")
    if re.fullmatch(r"(?:19|20)\d\d", text):
        return date(int(text), 1, 1), date(int(text), 12, 31)
    if not re.search(r"\b(?:19|20)\d\d\b", text):
        return None  # the year would be a guess
    found = dates.find(text, ANY_DAY)
    if len(found) != 1 or found[0].relative or text[: found[0].span[0]].strip() or text[found[0].span[1] :].strip():
        return None
    return found[0].start, found[0].end


def _relative(count: str, unit: str, side: str, anchor: date) -> Span | None:
    """Resolve `2 weeks before 7 May 2023` by the rules of `dates`, as `2 weeks ago` on that day."""
    ahead = side == "after"
    if count and side != "of":
        text = f"{count} {unit}s from now" if ahead else f"{count} {unit}s ago"
    elif side == "of":
        text = f"this {unit}" if unit in ("week", "weekend") and not count else ""
    elif unit == "day":
        text = "tomorrow" if ahead else "yesterday"
    else:
        text = f"{'next' if ahead else 'last'} {unit}"
    found = dates.find(text, anchor)
    whole = len(found) == 1 and found[0].span == (0, len(text)) and found[0].precision != "about"
    return (found[0].start, found[0].end) if whole else None


# ---------------------------------------------------------------- feedback in words


def feedback(question: Question, reply: Reply, conversation: Conversation) -> str:
    """Describe what is right and wrong in a reply, for a model that improves the instructions.

    The text contains neither the gold answer nor lines of the conversation, so that the instructions stay general. A
    resumed search replays its recorded calls, which contain these sentences, so that they must not change.

    Args:
        question: The question.
        reply: The reply.
        conversation: The conversation of the question.

    Returns:
        One or more sentences.
    """
    turns = {turn.id: turn for turn in conversation.turns}
    absent = reply.absent or abstains(reply.answer)
    sentences = _on_speakers(question, reply, conversation, turns)
    if not question.answerable:
        verdict = (
            "Right: the memory does not hold the answer." if absent else "The memory does not hold the answer: absent."
        )
        return " ".join([verdict, *sentences])
    there = [id for id in question.evidence if id in reply.shown]
    missing = len(question.evidence) - len(there)
    lines = _numbers(there, reply)
    if absent:
        if not there:
            return "Right: the lines that hold the answer were not in memory."
        rest = f" {missing} other line(s) that it takes were not in memory: status more, where it is offered."
        return f"{lines} held the answer, and the status should be answered.{rest if missing else ''}"
    if missing and there:
        sentences.append(f"{missing} more line(s) that it takes were not in memory.")
    elif missing:
        sentences.append(
            "The lines that hold the answer were not in memory: status more where it is offered, else absent."
        )
    if reply.cited is not None:
        if uncited := [id for id in there if id not in reply.cited]:
            sentences.append(f"{_numbers(uncited, reply)} held the answer, in memory, and was not cited.")
        if unrelated := [id for id in reply.cited if id not in question.evidence]:
            sentences.append(f"{_numbers(unrelated, reply)} was cited and does not hold the answer.")
    sentences.append(_on_answer(question, reply.answer))
    return " ".join(sentences)


def _on_answer(question: Question, answer: str) -> str:
    if answer_score(question, answer) == 1.0:
        return "The answer is right."
    expected, given = span(question.gold or ""), span(answer)
    if expected and given:
        days = (given[0] - expected[0]).days
        if days:
            return f"The date is off by {abs(days)} days: too {'late' if days > 0 else 'early'}."
        return "The date is right at its start, but the span of days is another."
    words, gold_words = normalize(answer), normalize(question.gold or "")
    shared = len(set(words) & set(gold_words))
    if not shared:
        return f"None of the answer's words are in the expected answer, which has {len(gold_words)}."
    return f"Of the answer's {len(words)} words {shared} are in the expected answer, which has {len(gold_words)}."


def _on_speakers(question: Question, reply: Reply, conversation: Conversation, turns: Mapping[str, Turn]) -> list[str]:
    """Return a sentence if the lines behind the answer are by the other speaker and do not mention the right one."""
    subject = named_speaker(question.text, conversation.speakers)
    ids = question.evidence if not question.answerable else reply.cited or ()
    found = [turns[id] for id in ids if id in turns]
    if subject is None or not found or any(mentions(turn.line, subject) for turn in found):
        return []
    other = next(speaker for speaker in conversation.speakers if speaker != subject)
    end = ": absent." if not question.answerable else "."
    return [f"That was said by {other}, and the question asks about {subject}{end}"]


def _numbers(ids: Sequence[str], reply: Reply) -> str:
    """Name turns by their line numbers, such as "Lines 1, 3"."""
    numbers = [str(reply.shown.index(id) + 1) for id in ids if id in reply.shown]
    return f"Line{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"
