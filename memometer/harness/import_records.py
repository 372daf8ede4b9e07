"""Records of answers and verdicts that are imported from a published result file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from memometer.benchmarks.protocol import FREE, Question
from memometer.budget import UNBOUNDED
from memometer.harness.import_files import text_of
from memometer.harness.import_formats import Format, at, first
from memometer.run.folder import Record


def answer_record(
    system: str, answer: Any, question: Question, format: Format, model: str | None, judge: str | None
) -> Record:
    """Return the record of one answer in a run folder. Values that the file lacks are None.

    Args:
        system: Name of the system.
        answer: The answer's part of the file.
        question: The question.
        format: The format of the file.
        model: Name of the model that answered.
        judge: Name of the judge model.
    """
    text = text_of(first(answer, format.answer))  # None for null or an object without text: the call failed
    values = at(answer, format.verdicts) if format.verdicts else ()
    verdicts = [verdict_record(value, n, format, judge) for n, value in enumerate(values)]
    # An empty answer with a label is an answer. Without one, the call failed.
    failed = text is None or (not str(text).strip() and all(v["label"] == "missing" for v in verdicts))
    return {
        "system": system,
        "budget_tokens": UNBOUNDED,
        "question_id": question.id,
        "conversation": question.conversation,
        "category": question.category,
        "gold": question.gold,
        "evidence": question.evidence,
        "option_order": FREE,
        "attempt": 1,
        "answer": None if failed else str(text),
        "recall": {"turn_ids": None, "ranked": [], "tokens": None, "counter": None},
        "verdicts": [] if failed else verdicts,
        "calls": None,
        "unreported": None,
        "prompt_tokens": None,
        "completion_tokens": None,
        "truncated": None,
        "seconds": None,
        "model": model,
        "error": f"{format.name}: the file has no answer" if failed else "",
        "at": None,
    }


def verdict_record(value: Any, repeat: int, format: Format, judge: str | None) -> dict[str, Any]:
    """Return one verdict on an answer.

    Args:
        value: The label in the file.
        repeat: Number of the verdict on this answer, from 0.
        format: The format of the file.
        judge: Name of the judge model.
    """
    label = format.labels.get(value, "missing") if isinstance(value, str | bool | int | float) else "missing"
    return {
        "judge": judge or "unknown",
        "prompt": "published",
        "prompt_hash": None,
        "label_set": "original",
        "repeat": repeat,
        "label": label,
        "raw": value if isinstance(value, str) else json.dumps(value),
        "reason": "" if label != "missing" else f"the file's label is {value!r}",
        "prompt_tokens": None,
        "completion_tokens": None,
        "unreported": None,
    }


def _share(record: Record) -> float | None:
    """Return the share of an answer's labels that are "correct"; None if it has no label."""
    labels = [verdict["label"] for verdict in record["verdicts"] if verdict["label"] != "missing"]
    return labels.count("correct") / len(labels) if labels else None


def majority(record: Record) -> bool:
    """Return True if most labels of an answer are "correct"."""
    return (_share(record) or 0.0) > 0.5


def scores(records: Iterable[Record]) -> dict[str, float]:
    """Average the verdicts on each answer of one system.

    Returns:
        Question id -> mean in [0, 1], without questions that have no label.
    """
    return {record["question_id"]: share for record in records if (share := _share(record)) is not None}
