"""Verdicts amount to a score under one judge, prompt and key, and never under two at once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memometer.judging.graders import Grader, graders_of, prompt_hashes, score

STRICT = Grader("m/judge", "strict")
LABELS = ("correct", "wrong", "missing")


def verdict(label: str, **more: Any) -> dict[str, Any]:
    return {"judge": "m/judge", "prompt": "strict", "prompt_hash": "a1", "label": label, "reason": "", **more}


def answered(*verdicts: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"answer": "Sourdough", "error": "", "memory_error": "", "verdicts": list(verdicts), **more}


def test_a_grading_is_a_judge_a_prompt_and_a_key_in_order_of_appearance() -> None:
    records = [
        answered(),
        answered(verdict("wrong"), verdict("correct", label_set="corrected")),
        answered(verdict("wrong", prompt="lenient"), verdict("correct", judge="other")),
    ]
    assert [grading.name for grading in graders_of(records)] == [
        "m/judge (strict, original)",
        "m/judge (strict, corrected)",
        "m/judge (lenient, original)",
        "other (strict, original)",
    ]


@pytest.mark.parametrize(
    ("labels", "mean", "majority"),
    [
        (["correct"], 1, 1),
        (["correct", "wrong", "correct"], 2 / 3, 1),
        (["correct", "wrong", "wrong"], 1 / 3, 0),
        (["correct", "wrong"], 0.5, 0),
        (["correct", "missing", "wrong", "correct"], 2 / 3, 1),
        (["missing", "missing"], None, None),
        ([], None, None),
    ],
)
def test_repeats_have_a_mean_and_a_majority(labels: list[str], mean: float | None, majority: float | None) -> None:
    record = answered(*(verdict(label, repeat=i) for i, label in enumerate(labels)))
    assert score(record, STRICT) == mean
    assert score(record, STRICT, rule="majority") == majority


def test_an_answer_that_was_graded_is_not_graded_until_it_pleases() -> None:
    assert score(answered(verdict("wrong"), verdict("correct")), STRICT) == 0
    assert score(answered(verdict("missing"), verdict("correct")), STRICT) == 1, "a failed judge may be asked again"


def test_gradings_do_not_mix() -> None:
    record = answered(verdict("wrong"), verdict("correct", prompt="lenient"), verdict("correct", label_set="corrected"))
    assert score(record, STRICT) == 0
    assert score(record, Grader("m/judge", "lenient")) == 1
    assert score(record, Grader("m/judge", "strict", "corrected")) == 1
    assert score(record, Grader("other", "strict")) is None


def test_a_memory_that_fails_is_wrong_and_a_reader_that_fails_is_missing() -> None:
    assert score(answered(answer=None, memory_error="KeyError: 3"), STRICT) == 0
    assert score(answered(answer=None, error="LMServerError: 500"), STRICT) is None


def test_versions_of_a_prompt_are_seen() -> None:
    records = [answered(verdict("wrong")), answered(verdict("wrong", prompt_hash="b2"), verdict("wrong", prompt="x"))]
    assert prompt_hashes(records, STRICT) == {"a1", "b2"}


@given(st.lists(st.tuples(st.sampled_from(LABELS), st.integers(0, 3)), max_size=8))
def test_a_score_is_a_fraction_of_what_was_labelled(given: list[tuple[str, int]]) -> None:
    record = answered(*(verdict(label, repeat=repeat) for label, repeat in given))
    mean = score(record, STRICT)
    assert (mean is None) == all(label == "missing" for label, _ in given)
    if mean is not None:
        assert 0 <= mean <= 1
        assert score(record, STRICT, rule="majority") == float(mean > 0.5)
