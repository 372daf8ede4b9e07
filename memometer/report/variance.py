"""The variance of a score, split into conversations, questions, repeated answers and repeated verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from memometer.benchmarks.protocol import Question
from memometer.judging import sample_scores
from memometer.judging.graders import Grader, grader_of, graders_of
from memometer.report.presenter import Table
from memometer.report.summary import shown_budget
from memometer.run.folder import Record, failed, is_answered, latest
from memometer.stats.number_format import UNKNOWN, number, percent
from memometer.stats.variance_components import LEVELS, Place, variance_components

Results = dict[str, Any]


def measure(runs: Sequence[Iterable[Record]], questions: Iterable[Question], grader: Grader | None) -> list[Results]:
    """Split the variance of each system's score.

    Args:
        runs: The records of one run, or of several runs of one configuration, whose answers are repeats.
        questions: The questions.
        grader: The grader, whose repeated verdicts count; None for F1.

    Returns:
        For each system and budget with a repeat `system`, `budget`, `measure`, `mean`, `standard_error`, `units` (level
        -> number), `variance` (level -> value or None) and `share_of_mean` (level -> share).
    """
    asked = {question.id: question for question in questions if question.answerable}
    scores: dict[tuple[str, int], tuple[list[float], list[Place]]] = {}
    for answer, records in enumerate(runs):
        for record in latest(records).values():
            question = asked.get(record["question_id"])
            if question is None or not is_answered(record):
                continue
            values, places = scores.setdefault((record["system"], record["budget_tokens"]), ([], []))
            for repeat, value in _values(question, record, grader):
                values.append(value)
                places.append((question.conversation, question.id, answer, repeat))
    found = []
    for (system, budget), (values, places) in scores.items():
        components = variance_components(values, places)
        repeated = (
            components and max(components.units[n] for n in ("answers", "verdicts")) > components.units["questions"]
        )
        if components and repeated:
            found.append(
                {
                    "system": system,
                    "budget": budget,
                    "measure": "judge" if grader else "f1",
                    "mean": sum(values) / len(values),
                    "standard_error": components.standard_error,
                    "units": components.units,
                    "variance": components.variance,
                    "share_of_mean": components.share_of_mean,
                }
            )
    return found


def _values(question: Question, record: Record, grader: Grader | None) -> list[tuple[int, float]]:
    """(number of the verdict, score) of one answer."""
    if failed(record):
        return [(0, 0.0)]
    if grader is None:
        scores = sample_scores.by_question([(question, record)], "f1")
        return [(0, score) for score in scores.values()]
    first: dict[int, float] = {}
    for verdict in record["verdicts"]:
        if grader_of(verdict) == grader and verdict["label"] != "missing":
            first.setdefault(verdict.get("repeat", 0), verdict.get("score", float(verdict["label"] == "correct")))
    return list(first.items())


def of_run(records: Sequence[Record], questions: Iterable[Question], withheld: Iterable[str]) -> list[Results]:
    """Split the variance of one run with repeated verdicts of its own grader; empty without them."""
    own = [grader for grader in graders_of(records)[:1] if grader.name not in set(withheld)]
    return measure([records], questions, own[0]) if own else []


def tables(found: Sequence[Results]) -> list[Table]:
    """Build the table of `measure`; none without repeats."""
    if not found:
        return []
    rows = [
        [
            entry["system"],
            shown_budget(entry["budget"]),
            percent(entry["mean"]),
            percent(entry["standard_error"]),
            *(
                UNKNOWN if entry["variance"][level] is None else f"{percent(entry['share_of_mean'][level], 0)} %"
                for level in LEVELS
            ),
            *(number(entry["units"][level]) for level in LEVELS),
        ]
        for entry in found
    ]
    title = (
        f"Variance of {sample_scores.MEASURES[found[0]['measure']]}: the part of each level in the variance of the "
        "mean. A level without repeats is part of the level before it"
    )
    counts = [f"n {level}" for level in LEVELS]
    return [Table(title, ["system", "budget", "mean", "standard error", *LEVELS, *counts], rows)]
