"""The objective by hand: answers, dates, citations, statuses, the price of tokens; and what is said about a reply."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locomo.dataset import Question
from memometer.benchmarks.metrics import ABSTENTION
from memometer.benchmarks.protocol import Conversation, Session
from memometer.benchmarks.reward import Objective, Reply, answer_score, feedback, span
from memometer.memory import Turn

SAID_AT = datetime(2023, 5, 8, 14)
TURNS = (
    Turn("D1:1", "Nadia", "I bought a red kayak on Friday.", 1, SAID_AT),
    Turn("D1:2", "Oskar", "I sold my bicycle to a friend.", 1, SAID_AT),
    Turn("D1:3", "Nadia", "The kayak is from the shop at the pier.", 1, SAID_AT),
)
QUESTION = Question("c", 0, "What did Nadia buy?", "4", "a red kayak", ("D1:1",))
CONVERSATION = Conversation("c", ("Nadia", "Oskar"), (Session(1, SAID_AT, TURNS),), (QUESTION,))
ALL = ("D1:1", "D1:2", "D1:3")


def reply(answer: str, **parts: Any) -> Reply:
    return Reply(**{"answer": answer, "shown": ALL, "total_tokens": 0, **parts})


def asked(**parts: Any) -> Question:
    return replace(QUESTION, **parts)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("7 May 2023", "2023-05-07"),
        ("7 May 2023", "On May 7th, 2023."),
        ("May, 2023", "in May 2023"),
        ("2022", "In 2022"),
        ("The week before 11 June 2021", "week of 31 May 2021"),
        ("The Sunday before 27 May 2021", "23 May 2021"),
        ("two weekends before 19 July 2021", "weekend of 10 July 2021"),
        ("3 days after 1 March 2022", "4 March 2022"),
        ("the weekend after 4June, 2021.", "weekend of 12 June 2021"),
    ],
)
def test_one_date_in_two_forms(one: str, other: str) -> None:
    assert span(one) == span(other) is not None
    assert answer_score(asked(category="2", gold=one), other) == 1.0


@pytest.mark.parametrize(
    "text",
    ["", "13 August", "10 years ago", "7 or 8 May 2023", "7 May 2023 or 8 May 2023", "not on 7 May 2023", "around 2022",
     "Chicago in 2022", "a few days before 24 May 2021", "31 February 2022", "yesterday"],
)  # fmt: skip
def test_what_is_not_one_date_and_nothing_else_is_none(text: str) -> None:
    assert span(text) is None
    gold = asked(category="2", gold="7 May 2023")
    assert answer_score(gold, text) == gold.score(text)


@given(st.dates(date(1990, 1, 1), date(2050, 12, 31)), st.dates(date(1990, 1, 1), date(2050, 12, 31)))
def test_dates_are_equal_when_they_are(one: date, other: date) -> None:
    question = asked(category="2", gold=f"{one.day} {one:%B %Y}")
    assert span(one.isoformat()) == (one, one)
    assert (answer_score(question, other.isoformat()) == 1.0) == (one == other)


@given(st.text(max_size=60))
def test_any_text_has_a_score(text: str) -> None:
    assert 0 <= answer_score(QUESTION, text) <= 1
    assert 0 <= Objective().quality(QUESTION, reply(text, cited=("D1:2",))) <= 1
    assert feedback(QUESTION, reply(text, cited=("D1:2",)), CONVERSATION)


@pytest.mark.parametrize(
    ("question", "given", "worth"),
    [
        (QUESTION, reply("a red kayak", cited=("D1:1",)), 1.0),
        (QUESTION, reply("a red kayak", cited=("D1:1", "D1:2")), 0.8 + 0.2 * 2 / 3),
        (QUESTION, reply("a red kayak", cited=()), 0.8),
        (QUESTION, reply("a red kayak"), 1.0),
        (QUESTION, reply("a red kayak", cited=("D1:2",), shown=("D1:2",)), 0.8),
        (asked(evidence=()), reply("a red kayak", cited=("D1:2",)), 1.0),
        (QUESTION, reply("a blue kayak", cited=("D1:1",)), 0.8 * 0.5 + 0.2),
        (QUESTION, reply(ABSTENTION, absent=True, cited=()), 0.0),
        (QUESTION, reply(ABSTENTION), 0.0),
        (QUESTION, reply(ABSTENTION, absent=True, shown=("D1:2",)), 0.05),
        (QUESTION, reply("", cited=()), 0.0),
        (asked(category="5", gold=None), reply("a red kayak", cited=("D1:1",)), 0.0),
        (asked(category="5", gold=None), reply(ABSTENTION, absent=True), 1.0),
    ],
)
def test_the_table_of_the_docstring(question: Question, given: Reply, worth: float) -> None:
    assert Objective().quality(question, given) == pytest.approx(worth)
    assert Objective(0.05)(question, replace(given, total_tokens=2_000)) == pytest.approx(worth - 0.1)


def test_what_only_pleases_a_judge_gains_little() -> None:
    pleased = Objective(judged=lambda question, answer: 1.0)
    assert pleased.quality(QUESTION, reply("something that was bought")) == pytest.approx(0.3)
    assert pleased.quality(QUESTION, reply("a red kayak")) == 1.0
    assert Objective(judged=lambda question, answer: None).quality(QUESTION, reply("a blue kayak")) == 0.5


@pytest.mark.parametrize(
    ("question", "given", "told"),
    [
        (QUESTION, reply("a red kayak", cited=("D1:1",)), "The answer is right."),
        (QUESTION, reply("the shop", cited=("D1:3",)), "Line 1 held the answer, in memory, and was not cited."),
        (QUESTION, reply("the shop", cited=("D1:3",)), "Line 3 was cited and does not hold the answer."),
        (QUESTION, reply("his bicycle", cited=("D1:2",)), "said by Oskar, and the question asks about Nadia"),
        (QUESTION, reply("x", cited=(), shown=("D1:2",)), "The lines that hold the answer were not in memory"),
        (asked(evidence=("D1:1", "D1:3")), reply("x", shown=("D1:1",)), "1 more line(s) that it takes were not"),
        (QUESTION, reply(ABSTENTION, absent=True), "Line 1 held the answer, and the status should be answered."),
        (QUESTION, reply(ABSTENTION, absent=True, shown=("D1:2",)), "Right: the lines that hold the answer were not"),
        (asked(gold="7 May 2023"), reply("14 May 2023"), "The date is off by 7 days: too late."),
        (asked(gold="the week before 11 June 2021"), reply("28 May 2021"), "The date is off by 3 days: too early."),
        (QUESTION, reply("She bought a nice red kayak last week"), "Of the answer's 7 words 2 are in the expected"),
        (asked(category="5", gold=None, evidence=("D1:2",)), reply("a bicycle"), "does not hold the answer: absent."),
        (asked(category="5", gold=None, evidence=("D1:2",)), reply("a bicycle"), "said by Oskar"),
        (asked(category="5", gold=None), reply(ABSTENTION, absent=True), "Right: the memory does not hold the answer."),
    ],
)
def test_feedback_says_what_was_wrong_without_the_answer(question: Question, given: Reply, told: str) -> None:
    said = feedback(question, given, CONVERSATION)
    assert told in said
    assert "kayak" not in said
