"""Files about LOCOMO that users download themselves: audited label errors and specific wrong answers.

Both name a question as `locomo_<conversation>_qa<question>`, counted from 0. Neither is part of this project
(CC BY-NC 4.0).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memometer.benchmarks.metrics import comparable
from memometer.benchmarks.protocol import DataError, Dataset, LabelCorrection, Question

SOURCE = "errors.json of github.com/dial481/locomo-audit at commit 9493fb4 (CC BY-NC 4.0)"
CITATION_ONLY = "WRONG_CITATION"
"""The kind of error that leaves the gold answer right: only the cited evidence is wrong."""


def read_corrections(path: Path, data: Dataset) -> tuple[LabelCorrection, ...]:
    """Read the audit's file and compare each entry with the question and gold answer of the data.

    Args:
        path: The audit's errors.json.
        data: LOCOMO.

    Returns:
        The corrections, each question at most once.

    Raises:
        DataError: The file cannot be read, or belongs to other questions.
    """
    try:
        found = tuple(_correction(entry, data) for entry in json.loads(path.read_bytes()))
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r} ({error.strerror}); download {SOURCE}.") from error
    except DataError as error:
        raise DataError(
            f"{str(path)!r} has no label corrections for {data.path.name}: {error}; download {SOURCE}."
        ) from error
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise DataError(f"{str(path)!r} is not a file of label corrections ({error!r}); download {SOURCE}.") from error
    if twice := [id for id, n in Counter(each.question_id for each in found).items() if n > 1]:
        raise DataError(f"{str(path)!r} lists {', '.join(twice[:5])} more than once; download {SOURCE}.")
    if not found:
        raise DataError(f"{str(path)!r} lists no label error; download {SOURCE}.")
    return found


def _correction(entry: dict[str, Any], data: Dataset) -> LabelCorrection:
    question = question_of(entry["question_id"], data)
    if question is None or question.gold is None:
        raise DataError(f"there is no answerable question {entry['question_id']!r}")
    for name, theirs, ours in (
        ("question", entry["question"], question.text),
        ("gold", entry["golden_answer"], question.gold),
        ("category", entry["category"], question.category),
    ):
        if comparable(theirs) != comparable(ours):
            raise DataError(f"{entry['question_id']} has another {name} than {question.id}")
    kind = str(entry["error_type"])
    return LabelCorrection(question.id, kind, str(entry["correct_answer"]), in_answer=kind != CITATION_ONLY)


def read_wrong_answers(path: Path, data: Dataset) -> dict[str, str]:
    """Read specific wrong answers, for the calibration of a judge.

    The file is JSON: `detailed_results` holds lists of entries with `question_id`, `question` and `generated_answer`.

    Args:
        path: The file.
        data: LOCOMO.

    Returns:
        Question id -> a wrong but specific answer.

    Raises:
        DataError: The file cannot be read, or belongs to other questions.
    """
    try:
        entries = [entry for part in json.loads(path.read_bytes())["detailed_results"].values() for entry in part]
        return dict(_wrong_answer(entry, data) for entry in entries)
    except OSError as error:
        raise DataError(
            f"cannot read the wrong answers {str(path)!r} ({error.strerror}); correct the path, or leave it out."
        ) from error
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{str(path)!r} holds no wrong answers to LOCOMO's questions ({error}); expected "
            "{'detailed_results': {…: [{'question_id': 'locomo_0_qa0', 'question': …, 'generated_answer': …}]}}."
        ) from error


def _wrong_answer(entry: Mapping[str, Any], data: Dataset) -> tuple[str, str]:
    question = question_of(entry["question_id"], data)
    if question is None:
        raise ValueError(f"there is no question {entry['question_id']!r}")
    if comparable(entry["question"]) != comparable(question.text):
        raise ValueError(f"{entry['question_id']} has another text in the data")
    return question.id, str(entry["generated_answer"])


def question_of(id: str, data: Dataset) -> Question | None:
    """Return the question with the id `locomo_<conversation>_qa<question>`, or None."""
    match = re.fullmatch(r"locomo_(\d+)_qa(\d+)", id)
    return data.question_at(int(match[1]), int(match[2])) if match else None
