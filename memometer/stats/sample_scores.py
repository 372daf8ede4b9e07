"""What each question scored under a measure: where every mean, interval and comparison starts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from memometer.benchmarks.metrics import evidence_recall
from memometer.benchmarks.protocol import Question
from memometer.judging.graders import Grading, Rule, score
from memometer.run.folder import Record, failed, is_answered

Pair = tuple[Question, Record | None]
"""A question that was planned, and the attempt that counts; None where it was not asked yet."""

MEASURES = {"judge": "J", "f1": "F1", "evidence_recall": "evidence recall"}


def applies(question: Question, measure: str) -> bool:
    """Whether a question can have a score at all: a judge needs a gold answer, evidence recall evidence."""
    return {"judge": question.gold is not None, "evidence_recall": bool(question.evidence)}.get(measure, True)


def by_question(
    pairs: Iterable[Pair], measure: str, grading: Grading | None = None, *, rule: Rule = "mean"
) -> dict[str, float]:
    """Question id -> score from 0 to 1, of those that have one; what was asked in two forms has the mean of both.

    A question without a score is ungraded, never 0: a model's call failed, or no verdict has a label. Where the memory
    failed the score is 0. `grading` is needed for the measure "judge".
    """
    found: dict[str, list[float]] = defaultdict(list)
    for question, record in pairs:
        value = None if record is None else _score(question, record, measure, grading, rule)
        if value is not None:
            found[question.id].append(value)
    return {id: sum(values) / len(values) for id, values in found.items()}


def asked(pairs: Iterable[Pair], measure: str) -> list[str]:
    """The ids of the questions that should have a score, each once."""
    return list(dict.fromkeys(question.id for question, _ in pairs if applies(question, measure)))


def conversations(ids: Iterable[str]) -> list[str]:
    """The conversation of each question id: what its interval is clustered by."""
    return [id.rpartition("#")[0] for id in ids]


def align(*systems: dict[str, float]) -> tuple[list[str], list[list[float]]]:
    """(the ids that all systems have a score for, each system's scores of them)."""
    shared: Sequence[str] = [id for id in systems[0] if all(id in system for system in systems[1:])]
    return list(shared), [[system[id] for id in shared] for system in systems]


def _score(question: Question, record: Record, measure: str, grading: Grading | None, rule: Rule) -> float | None:
    if not is_answered(record) or not applies(question, measure):
        return None
    if measure == "judge":
        return score(record, grading, rule=rule) if grading else None
    if failed(record):
        return 0.0 if measure != "f1" or record["model"] else None  # nobody was to answer
    if measure == "evidence_recall":
        shown = record["recall"]["turn_ids"]  # None where nobody told, in answers that others published
        return None if shown is None else evidence_recall(question.evidence, set(shown))
    return None if record["answer"] is None else question.score(record["answer"], record["form"])
