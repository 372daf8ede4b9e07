"""Label sets: the benchmark's gold answers, the same with known errors corrected, and without the erroneous ones.

The known errors come from a file that users download themselves (see `Benchmark.label_corrections`). An error in the
cited evidence leaves the gold answer as it is. A corrected gold answer is a sentence for a judge; token F1 against it
is not meaningful.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memometer import benchmarks
from memometer.benchmarks.protocol import DataError, Dataset, LabelCorrection, Question, category_label
from memometer.stats.intervals import clustered_mean

LABEL_SETS = ("original", "corrected", "clean")
"""`clean` is the original label set without the questions whose gold answer is wrong: they are excluded."""


@dataclass(frozen=True, slots=True)
class LabelCorrections:
    """Verified label errors, each question at most once."""

    corrections: tuple[LabelCorrection, ...]

    @property
    def corrected(self) -> dict[str, str]:
        """Question id -> right answer, for the questions whose gold answer is wrong."""
        return {found.question_id: found.answer for found in self.corrections if found.in_answer}

    @property
    def flagged(self) -> frozenset[str]:
        """The ids of the questions whose gold answer is wrong."""
        return frozenset(self.corrected)


def load(name: str, path: str | Path | None = None, *, data: Dataset) -> dict[str, str]:
    """Read the gold answers of a label set.

    Args:
        name: A name in LABEL_SETS.
        path: The file of label corrections; by default the one that the benchmark's variable names.
        data: The benchmark's data.

    Returns:
        Question id -> gold answer, without the questions that the label set excludes.

    Raises:
        DataError: The label set is unknown, or the label corrections are missing or belong to other questions.
    """
    if name not in LABEL_SETS:
        raise DataError(f"the label set is {name!r}; it may be {', '.join(LABEL_SETS)}.")
    golds = {question.id: question.gold for question in data.questions if question.gold is not None}
    if name == "original":
        return golds
    found = read(path, data=data)
    if name == "corrected":
        return golds | found.corrected
    return {id: gold for id, gold in golds.items() if id not in found.flagged}


def named_file(data: Dataset) -> str | None:
    """Return the file of label corrections that the benchmark's environment variable names, or None."""
    file = benchmarks.load(data.benchmark).label_corrections
    return os.environ.get(file.variable) if file else None


def read(path: str | Path | None = None, *, data: Dataset) -> LabelCorrections:
    """Read and verify the benchmark's label corrections.

    Args:
        path: The file; by default the one that the benchmark's variable names.
        data: The benchmark's data.

    Returns:
        The label corrections.

    Raises:
        DataError: The file is missing or cannot be used.
    """
    benchmark = benchmarks.load(data.benchmark)
    file = benchmark.label_corrections
    if file is None:
        raise DataError(f"there are no label corrections for {benchmark.title}.")
    name = path or os.environ.get(file.variable)
    if not name:
        raise DataError(
            f"the label corrections are missing; download {file.source} and name it with --label-corrections FILE or "
            f"{file.variable}."
        )
    return LabelCorrections(file.read(Path(name), data))


def by_category(questions: Collection[Question]) -> dict[str, list[Question]]:
    """Group the answerable questions: `overall`, then each category that has one."""
    answerable = [question for question in questions if question.answerable]
    groups = {"overall": answerable} if answerable else {}
    for key in sorted({question.category for question in answerable}):
        groups[key] = [question for question in answerable if question.category == key]
    return groups


def ceilings(questions: Collection[Question], flagged: Collection[str]) -> dict[str, float]:
    """Compute the highest score of a truthful reader, who is graded as wrong on questions with a wrong gold answer.

    Args:
        questions: The questions.
        flagged: Ids of the questions whose gold answer is wrong.

    Returns:
        `overall` and each category -> the fraction of questions whose gold answer is right.
    """
    return {
        name: sum(question.id not in flagged for question in group) / len(group)
        for name, group in by_category(questions).items()
    }


def clean_and_flagged(scores: Mapping[str, float], flagged: Collection[str]) -> dict[str, dict[str, Any]]:
    """Compute the accuracy on questions with a right and with a wrong gold answer.

    Args:
        scores: Question id -> score in [0, 1].
        flagged: Ids of the questions whose gold answer is wrong.

    Returns:
        `clean` and `flagged` -> `accuracy`, `interval` ([low, high] at 95 %, clustered by conversation, or None), `n`.
    """
    parts = {"clean": [id for id in scores if id not in flagged], "flagged": [id for id in scores if id in flagged]}
    found = {}
    for name, ids in parts.items():
        estimate = clustered_mean([scores[id] for id in ids], [id.rpartition("#")[0] for id in ids])
        interval = None if estimate.low is None else [estimate.low, estimate.high]
        found[name] = {"accuracy": estimate.mean, "interval": interval, "n": estimate.n}
    return found


def above_ceiling(
    scores: Mapping[str, float],
    questions: Collection[Question],
    flagged: Collection[str],
    names: Mapping[str, str],
) -> list[str]:
    """Find groups of questions that score above their ceiling.

    Args:
        scores: Question id -> score in [0, 1] under the original label set; the ceiling holds for no other.
        questions: The questions.
        flagged: Ids of the questions whose gold answer is wrong.
        names: Key -> name of each category.

    Returns:
        A sentence for each such group.
    """
    scored = [question for question in questions if question.id in scores]
    found = []
    for name, group in by_category(scored).items():
        ceiling = ceilings(group, flagged)["overall"]
        accuracy = sum(scores[question.id] for question in group) / len(group)
        if accuracy > ceiling + 1e-9:
            where = "overall" if name == "overall" else f"in category {category_label(name, names)}"
            found.append(
                f"{100 * accuracy:.2f} {where} is above the ceiling of {100 * ceiling:.2f} (n = {len(group):,}), more "
                "than a truthful reader can reach: the judge is lenient, or the answers fit the wrong labels."
            )
    return found
