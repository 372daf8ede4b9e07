"""The official scorer's own figures, to two decimals, and what evidence recall means at its edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from locomo.dataset import Question
from locomo.metrics import ABSTAIN_FIRST, TRAP_FIRST, chosen_option, official_f1, options
from memometer.benchmarks.metrics import ABSTENTION, abstains, evidence_recall, token_f1
from memometer.benchmarks.protocol import FREE


def percent(questions: list[Question], predict: Callable[[Question], str]) -> float:
    return round(100 * sum(official_f1(q, predict(q)) for q in questions) / len(questions), 2)


@pytest.mark.parametrize(
    ("predict", "overall", "answerable"),
    [
        (lambda q: q.gold or ABSTENTION, 99.65, 99.55),
        (lambda q: ABSTENTION, 22.80, 0.44),
        (lambda q: q.gold or q.adversarial_answer, 77.29, 99.55),
    ],
    ids=["gold", "refusal", "trap"],
)
def test_the_official_self_tests(locomo: Any, predict: Any, overall: float, answerable: float) -> None:
    assert percent(locomo.questions, predict) == overall
    assert percent([q for q in locomo.questions if q.category != "5"], predict) == answerable


def test_gold_as_prediction_in_category_3(locomo: Any) -> None:
    assert percent([q for q in locomo.questions if q.category == "3"], lambda q: q.gold or "") == 92.74


def test_dates_are_compared_as_words() -> None:
    assert token_f1("2023-05-07", "7 May 2023") == 0
    assert token_f1("May 7, 2023", "7 May 2023") == 1
    assert token_f1("", "7 May 2023") == 0


def test_multi_hop_answers_are_compared_part_by_part() -> None:
    question = Question("conv-26", 0, "?", "1", "beach, mountains", ())
    assert official_f1(question, "mountains, beach") == 1
    assert official_f1(question, "beach") == 0.5


def test_category_5_in_both_forms() -> None:
    question = Question("conv-26", 0, "?", "5", None, (), adversarial_answer="a red car")
    assert abstains("That is not mentioned.")
    assert not abstains("a red car")
    assert options(question, FREE) == ""
    assert options(question, ABSTAIN_FIRST).startswith("Select the correct answer: (a) Not mentioned")
    assert options(question, TRAP_FIRST) == (
        "Select the correct answer: (a) a red car (b) Not mentioned in the conversation."
    )
    scores = {
        (form, reply): official_f1(question, chosen_option(question, form, reply))
        for form in (ABSTAIN_FIRST, TRAP_FIRST)
        for reply in ("a", "(a)", " B ", "(b)", "Not mentioned in the conversation", "red")
    }
    assert [reply for (form, reply), score in scores.items() if form == ABSTAIN_FIRST and score] == [
        "a", "(a)", "Not mentioned in the conversation"]  # fmt: skip
    assert [reply for (form, reply), score in scores.items() if form == TRAP_FIRST and score] == [
        " B ", "(b)", "Not mentioned in the conversation"]  # fmt: skip


def test_evidence_recall_is_undefined_without_evidence() -> None:
    assert evidence_recall([], {"D1:1"}) is None
    assert evidence_recall(["D1:1", "D1:2"], {"D1:2", "D9:9"}) == 0.5


def test_how_many_questions_have_evidence(locomo: Any) -> None:
    assert sum(bool(q.evidence) for q in locomo.questions if q.category != "5") == 1536
    assert sum(bool(q.evidence) for q in locomo.questions) == 1982
