"""The questions that the options of an evaluation choose."""

from __future__ import annotations

from collections.abc import Sequence

from memometer import benchmarks
from memometer.benchmarks.protocol import DataError, Dataset, Question
from memometer.benchmarks.sampling import sample
from memometer.harness.options import EvaluateOptions


def categories_of(keys: Sequence[str], data: Dataset) -> tuple[str, ...]:
    """Return the keys of the categories to evaluate; without the option, all of them.

    Raises:
        DataError: A category is unknown.
    """
    if unknown := [key for key in keys if key not in data.categories]:
        known = ", ".join(key if name == key else f"{key} ({name})" for key, name in data.categories.items())
        raise DataError(f"--categories got {', '.join(unknown)}; the categories are {known}.")
    return tuple(keys) or tuple(data.categories)


def chosen_questions(options: EvaluateOptions, data: Dataset) -> tuple[Question, ...]:
    """The questions that options choose: of a part of the data, in some categories, or a sample of these.

    Raises:
        DataError: The split or a category is unknown.
    """
    categories = categories_of(options.categories, data)
    part = [q for c in data.part(options.split) for q in c.questions if q.category in categories]
    return sample(part, options.num_test or len(part), seed=options.seed)


def refuse_too_few(options: EvaluateOptions, data: Dataset, questions: Sequence[Question]) -> None:
    """Raise DataError if the chosen questions cannot be evaluated."""
    if not data.questions:
        raise DataError(
            f"{data.path} has no questions; add questions, or remember it for daily use with memometer add --from FILE."
        )
    if not questions:
        n = len(data.conversations)
        raise DataError(
            f"--split {options.split} has no question of the chosen categories; {data.path.name} has {n} "
            f"conversation{'' if n == 1 else 's'}. Use --split all."
        )
    own_measures = benchmarks.load(data.benchmark).measure is not None
    if options.recall_only and not own_measures and not any(question.evidence for question in questions):
        raise DataError(
            "--recall-only measures evidence recall, and no chosen question has evidence; add the ids of turns as "
            "evidence, or name a --model that answers."
        )
