"""Label sets: the benchmark's gold answers, the same with known errors corrected, and without the erroneous ones.

    memometer label-sets [--label-corrections FILE] [--data FILE]      prints the highest score of a truthful reader

The known errors come from a file that users download themselves (see `Benchmark.label_corrections`). An error in the
cited evidence leaves the gold answer as it is. A corrected gold answer is a sentence for a judge; token F1 against it
is not meaningful.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memometer import benchmarks
from memometer.benchmarks.arguments import add_data_arguments, load_data
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
    """The gold answers of a label set.

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
    """The file of label corrections that the benchmark's environment variable names."""
    file = benchmarks.load(data.benchmark).label_corrections
    return os.environ.get(file.variable) if file else None


def read(path: str | Path | None = None, *, data: Dataset) -> LabelCorrections:
    """Read and verify the benchmark's label corrections.

    Args:
        path: The file; by default the one that the benchmark's variable names.
        data: The benchmark's data.

    Raises:
        DataError: The file is missing or cannot be used.
    """
    benchmark = benchmarks.load(data.benchmark)
    file = benchmark.label_corrections
    if file is None:
        raise DataError(f"there are no label corrections for {benchmark.title}.")
    named = path or os.environ.get(file.variable)
    if not named:
        raise DataError(
            f"the label corrections are missing; download {file.source} and name it with --label-corrections FILE or "
            f"{file.variable}."
        )
    return LabelCorrections(file.read(Path(named), data))


def _by_category(questions: Collection[Question]) -> dict[str, list[Question]]:
    """`overall`, then each category with an answerable question."""
    answerable = [question for question in questions if question.answerable]
    groups = {"overall": answerable} if answerable else {}
    for key in sorted({question.category for question in answerable}):
        groups[key] = [question for question in answerable if question.category == key]
    return groups


def ceilings(questions: Collection[Question], flagged: Collection[str]) -> dict[str, float]:
    """`overall` and each category -> the fraction of questions whose gold answer is right.

    A truthful reader is graded as wrong on the others.
    """
    return {
        name: sum(question.id not in flagged for question in group) / len(group)
        for name, group in _by_category(questions).items()
    }


def side_by_side(scores: Mapping[str, float], flagged: Collection[str]) -> dict[str, dict[str, Any]]:
    """`clean`, `flagged` -> {accuracy, interval, n} of scores in [0, 1] by question id.

    The interval is [low, high] at 95 %, clustered by conversation, or None.
    """
    parts = {"clean": [id for id in scores if id not in flagged], "flagged": [id for id in scores if id in flagged]}
    figures = {}
    for name, ids in parts.items():
        found = clustered_mean([scores[id] for id in ids], [id.split("#")[0] for id in ids])
        interval = None if found.low is None else [found.low, found.high]
        figures[name] = {"accuracy": found.mean, "interval": interval, "n": found.n}
    return figures


def sentence(system: str, parts: Mapping[str, Mapping[str, Any]]) -> str:
    """`side_by_side` for people; each part with its accuracy by `majority` of the repeats too."""
    listed = [
        f"{100 * part['accuracy']:.2f} on the {part['n']:,} {name} questions"
        for name, part in parts.items()
        if part["n"]
    ]
    majority = [f"{100 * part['majority']:.2f}" for part in parts.values() if part["n"]]
    repeated = any(part["majority"] != part["accuracy"] for part in parts.values())
    return f"{system}: J {', '.join(listed)}" + (f"; by majority {', '.join(majority)}." if repeated else ".")


def alarms(
    scores: Mapping[str, float],
    questions: Collection[Question],
    flagged: Collection[str],
    names: Mapping[str, str],
) -> list[str]:
    """A sentence for each group of questions that scores above its ceiling.

    Args:
        scores: Question id -> score from 0 to 1 under the original label set; the ceiling holds for no other.
        questions: The questions.
        flagged: Ids of the questions whose gold answer is wrong.
        names: Key -> name of each category.
    """
    scored = [question for question in questions if question.id in scores]
    told = []
    for name, group in _by_category(scored).items():
        ceiling = ceilings(group, flagged)["overall"]
        accuracy = sum(scores[question.id] for question in group) / len(group)
        if accuracy > ceiling + 1e-9:
            where = "overall" if name == "overall" else f"in category {category_label(name, names)}"
            told.append(
                f"{100 * accuracy:.2f} {where} is above the ceiling of {100 * ceiling:.2f} (n = {len(group):,}), more "
                "than a truthful reader can reach: the judge is lenient, or the answers fit the wrong labels."
            )
    return told


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="memometer label-sets", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--label-corrections", metavar="FILE", help="default: the file of the benchmark's variable")
    add_data_arguments(parser)
    args = parser.parse_args(argv)
    try:
        data = load_data(args)
        found = read(args.label_corrections, data=data)
    except DataError as error:
        print(f"memometer.judging.label_sets: {error}", file=sys.stderr)
        return 2
    citations = len(found.corrections) - len(found.flagged)
    print(
        f"{data.prefix}{len(found.corrections)} label errors: {len(found.flagged)} wrong gold answers, "
        f"{citations} wrong citations"
    )
    groups = _by_category(data.questions)
    for name, ceiling in ceilings(data.questions, found.flagged).items():
        label = name if name == "overall" else category_label(name, data.categories)
        wrong = sum(question.id in found.flagged for question in groups[name])
        clean = len(groups[name]) - wrong
        print(f"{data.prefix}{label:<26}{clean:>6,} clean{wrong:>5} flagged, at most {100 * ceiling:.2f}")
    return 0
