"""Questions asked at several ages: a given number of turns after the last turn of their evidence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from memometer.benchmarks.metrics import evidence_recall
from memometer.benchmarks.protocol import Conversation, DataError, Dataset, Moment, Question
from memometer.benchmarks.shown import Answered, Measure

STRIDE = 100_000
"""Distance of the indexes of one question at two ages."""


def at_ages(data: Dataset, ages: Sequence[int]) -> Dataset:
    """Ask every question with evidence at several ages, in place of the end of its conversation.

    Args:
        data: The data.
        ages: Turns between the last turn of the evidence and the question. A question is left out at an age at which
            its conversation has ended.

    Raises:
        DataError: No question can be asked.
    """
    conversations = tuple(_at_ages(conversation, ages) for conversation in data.conversations)
    if not any(conversation.questions for conversation in conversations):
        raise DataError(f"--ages: {data.path.name} has no question with evidence at the age of {min(ages):,} turns.")
    notice = "Each question is asked at several ages, in turns after its last evidence."
    return replace(data, conversations=conversations, notice=f"{data.notice} {notice}".strip())


def _at_ages(conversation: Conversation, ages: Sequence[int]) -> Conversation:
    position = {turn.id: number for number, turn in enumerate(conversation.turns)}
    questions = []
    for number, age in enumerate(ages, start=1):
        for question in conversation.questions:
            if not question.evidence:
                continue
            after = max(position[id] for id in question.evidence) + 1 + age
            if after <= len(position):
                changes: dict[str, Any] = {"index": question.index + number * STRIDE, "moment": Moment(after)}
                if name := getattr(question, "name", ""):
                    changes["name"] = f"{name} at age {age}"
                questions.append(replace(question, **changes))
    return replace(conversation, questions=tuple(questions))


def measures(answered: Sequence[Answered], positions: Mapping[str, Mapping[str, int]]) -> list[Measure]:
    """Compute the recall at every age and at the worst one, and the share of questions with a hole.

    A hole is an age at which less of the evidence is shown than at an earlier and at a later age.

    Args:
        answered: The questions that were asked, with what was shown.
        positions: Conversation -> turn id -> position.
    """
    by_age: dict[int, dict[str, float]] = defaultdict(dict)
    by_question: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for each in answered:
        question = each.question
        if question.moment and question.evidence:
            last = max(positions[question.conversation][id] for id in question.evidence)
            age = question.moment.after - 1 - last
            seen = {id for part in each.shown.parts for id in part.turn_ids} if each.shown else set()
            recall = evidence_recall(question.evidence, seen) or 0.0
            by_age[age][question.id] = recall
            by_question[f"{question.conversation}#{_same(question)}"].append((age, recall))
    several = {key: [recall for _, recall in sorted(found)] for key, found in by_question.items() if len(found) > 1}
    return [
        *(Measure("recall at age", str(age), values) for age, values in sorted(by_age.items())),
        Measure("recall at the worst age", "", {key: min(recalls) for key, recalls in several.items()}),
        Measure("questions with a hole", "", {key: float(_has_hole(r)) for key, r in several.items()}, "share", True),
    ]


def _same(question: Question) -> str:
    return str(question.index % STRIDE)


def _has_hole(recalls: Sequence[float]) -> bool:
    return any(
        recall < min(max(recalls[:at]), max(recalls[at + 1 :]))
        for at, recall in enumerate(recalls)
        if 0 < at < len(recalls) - 1
    )
