"""The score of each question under a measure: judge accuracy, F1 or evidence recall."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from memometer.benchmarks.metrics import evidence_recall
from memometer.benchmarks.protocol import FREE, Question
from memometer.benchmarks.reward import balanced_f1
from memometer.judging.answer_rules import lexical_label
from memometer.judging.graders import Grader, Rule, score
from memometer.run.folder import Record, failed, is_answered

Pair = tuple[Question, Record | None]
"""A planned question and the attempt that counts; None if it was not asked yet."""

MEASURES = {
    "judge": "judge accuracy (J)",
    "f1": "F1",
    "balanced_f1": "F1 with list precision",
    "evidence_recall": "evidence recall",
}


def applies(question: Question, measure: str) -> bool:
    """Return True if a question can have a score: a judge needs a gold answer, evidence recall needs evidence."""
    return {"judge": question.gold is not None, "evidence_recall": bool(question.evidence)}.get(measure, True)


def by_question(
    pairs: Iterable[Pair], measure: str, grader: Grader | None = None, *, rule: Rule = "mean"
) -> dict[str, float]:
    """Score questions under a measure.

    A question without a score is missing, not 0: a model call failed, or no verdict has a label. If the memory system
    failed, the score is 0.

    Args:
        pairs: Questions and attempts.
        measure: A key of MEASURES.
        grader: The grader, for the measure `judge`.
        rule: How repeated verdicts are combined.

    Returns:
        Question id -> score in [0, 1], of the questions that have one; a question that was asked with several option
        orders has their mean.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for question, record in pairs:
        value = None if record is None else _score(question, record, measure, grader, rule)
        if value is not None:
            found[question.id].append(value)
    return {id: sum(values) / len(values) for id, values in found.items()}


def lexical(pairs: Iterable[Pair]) -> dict[str, float]:
    """Score answers by a judge without a model (`memometer.judging.answer_rules.lexical_label`).

    Args:
        pairs: Questions and attempts.

    Returns:
        Question id -> score in [0, 1], of the questions with a gold answer and an answer.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for question, record in pairs:
        if record is None or question.gold is None or not is_answered(record):
            continue
        if failed(record):
            found[question.id].append(0.0)
        elif record["answer"] is not None:
            found[question.id].append(float(lexical_label(question.gold, record["answer"]) == "correct"))
    return {id: sum(values) / len(values) for id, values in found.items()}


def expected(pairs: Iterable[Pair], measure: str) -> list[str]:
    """List the ids of the questions that should have a score, each once."""
    return list(dict.fromkeys(question.id for question, _ in pairs if applies(question, measure)))


def _score(question: Question, record: Record, measure: str, grader: Grader | None, rule: Rule) -> float | None:
    if not is_answered(record) or not applies(question, measure):
        return None
    if measure == "judge":
        return score(record, grader, rule=rule) if grader else None
    if measure == "evidence_recall" and record["recall"]["turn_ids"] is None:
        return None  # imported answers, and systems that do not show exact turns
    if failed(record):
        return (
            0.0 if measure not in ("f1", "balanced_f1") or record["model"] else None
        )  # without a reader nothing was to be answered
    if measure == "evidence_recall":
        return evidence_recall(question.evidence, set(record["recall"]["turn_ids"]))
    answer, order = record["answer"], record["option_order"]
    if answer is None:
        return None
    return (
        balanced_f1(question, answer) if measure == "balanced_f1" and order == FREE else question.score(answer, order)
    )
