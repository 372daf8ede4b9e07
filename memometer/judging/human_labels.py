"""Human labels of a run's answers: the stratified draw, the file of labels, and the accuracy that they give."""

from __future__ import annotations

import getpass
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal

from memometer.benchmarks.protocol import Dataset, Question
from memometer.judging.graders import graders_of, score
from memometer.judging.misclassification import corrected, rates_of_labels
from memometer.run.folder import Key, Record, failed, is_answered, key, latest
from memometer.stats.intervals import Estimate, clustered_mean
from memometer.stats.prediction_powered import prediction_powered

HumanLabel = Literal["correct", "wrong", "unclear"]
Results = dict[str, Any]

FIELDS = ("system", "budget_tokens", "question_id", "option_order")


@dataclass(frozen=True, slots=True)
class Draw:
    """An answer in the order of labelling.

    Attributes:
        record: The record of the answer.
        question: Its question.
        stratum: System, budget, rounded judge score and F1 class; draws are balanced over strata.
    """

    record: Record
    question: Question
    stratum: tuple[Any, ...]


def draws(records: Iterable[Record], data: Dataset, *, seed: int = 0) -> list[Draw]:
    """Order the answers of a run for labelling, balanced over judge verdict and F1.

    Each stratum has a random order of its own, and the strata take turns. Any prefix of the list is therefore a
    stratified random sample, so labelling can end after any answer and go on later.

    Args:
        records: The records of the run.
        data: Its data.
        seed: Seed of the random order.

    Returns:
        The answers to answerable questions with a gold answer, in the order of labelling.
    """
    questions = {question.id: question for question in data.questions if question.answerable and question.gold}
    counting = [r for r in latest(records).values() if r["question_id"] in questions and _is_labelled_by_hand(r)]
    grader = next(iter(graders_of(counting)), None)
    strata: dict[tuple[Any, ...], list[tuple[str, Draw]]] = defaultdict(list)
    for record in counting:
        question = questions[record["question_id"]]
        f1 = question.score(record["answer"], record["option_order"])
        verdict = score(record, grader) if grader else None
        level = 0 if f1 == 0 else 1 if f1 < 0.5 else 2
        stratum = (record["system"], record["budget_tokens"], None if verdict is None else verdict >= 0.5, level)
        order = hashlib.sha256(f"{seed}|{'|'.join(map(str, key(record)))}".encode()).hexdigest()
        strata[stratum].append((order, Draw(record, question, stratum)))
    turns = [
        (position, order, draw)
        for drawn in strata.values()
        for position, (order, draw) in enumerate(sorted(drawn, key=lambda pair: pair[0]))
    ]
    return [draw for _, _, draw in sorted(turns, key=lambda turn: turn[:2])]


def _is_labelled_by_hand(record: Record) -> bool:
    """True if there is an answer to read; a failure of the memory system is wrong without one."""
    return is_answered(record) and not failed(record) and record["answer"] is not None


def label_line(record: Record, label: HumanLabel, *, labeller: str, at: str, seed: int) -> Record:
    """Build a line of labels.jsonl.

    Args:
        record: The record of the answer.
        label: The label.
        labeller: Name of the person.
        at: Time of the label, ISO 8601.
        seed: Seed of the draw.

    Returns:
        The line.
    """
    line = {name: record[name] for name in FIELDS}
    return {**line, "label": label, "labeller": labeller, "at": at, "seed": seed}


def by_labeller(lines: Iterable[Record]) -> dict[str, dict[Key, HumanLabel]]:
    """Group labels by person. The latest label of a person for an answer counts.

    Args:
        lines: The lines of labels.jsonl.

    Returns:
        Labeller -> task -> label.
    """
    found: dict[str, dict[Key, HumanLabel]] = defaultdict(dict)
    for line in lines:
        found[line["labeller"]][key(line)] = line["label"]
    return dict(found)


def cohens_kappa(a: Sequence[HumanLabel], b: Sequence[HumanLabel]) -> float | None:
    """Compute Cohen's kappa, the agreement of two labellers beyond chance.

    Source: Cohen, Educational and Psychological Measurement 20, 1960.

    Args:
        a: Labels of the first person, shape (n,).
        b: Labels of the second person on the same answers, shape (n,).

    Returns:
        Kappa in [-1, 1]; None without labels, or if both gave one and the same label to all answers.
    """
    if not a:
        return None
    agreed = sum(x == y for x, y in zip(a, b, strict=True)) / len(a)
    first, second = Counter(a), Counter(b)
    chance = sum(first[label] * second[label] for label in first) / len(a) ** 2
    return None if chance == 1 else (agreed - chance) / (1 - chance)


def agreements(lines: Iterable[Record]) -> list[Results]:
    """Compute the agreement of each pair of labellers on the answers that both labelled.

    Args:
        lines: The lines of labels.jsonl.

    Returns:
        For each pair `labellers`, `n` and `kappa`.
    """
    labels = by_labeller(lines)
    found = []
    for one, other in combinations(sorted(labels), 2):
        shared = [task for task in labels[one] if task in labels[other]]
        kappa = cohens_kappa([labels[one][task] for task in shared], [labels[other][task] for task in shared])
        if shared:
            found.append({"labellers": [one, other], "n": len(shared), "kappa": kappa})
    return found


def accuracies(records: Sequence[Record], lines: Sequence[Record], data: Dataset) -> list[Results]:
    """Estimate the accuracy of each labelled system from human labels and the judge's verdicts.

    An answer's inclusion probability is the labelled share of its stratum. Strata without labels are pooled. If two
    people labelled an answer, their mean counts. An unclear answer counts as not labelled.

    Args:
        records: The records of the run.
        lines: The lines of labels.jsonl.
        data: The data of the run.

    Returns:
        For each system and budget with labels: `system`, `budget`, `labels`, `unclear`, `weight`; `accuracy`,
        `labels_alone` and `judge`, each with `mean`, `low`, `high` and `n`; the judge's `false_accept` and
        `false_reject` by these labels; and `rogan_gladen`, the judge accuracy corrected with them, or its `reason`.
    """
    labels: dict[Key, list[float]] = defaultdict(list)
    unclear = set()
    for given in by_labeller(lines).values():
        for task, label in given.items():
            if label == "unclear":
                unclear.add(task)
            else:
                labels[task].append(float(label == "correct"))
    cells: dict[tuple[str, int], list[Draw]] = defaultdict(list)
    for draw in draws(records, data):
        cells[draw.stratum[0], draw.stratum[1]].append(draw)
    failures: dict[tuple[str, int], list[Record]] = defaultdict(list)
    answerable = {question.id for question in data.questions if question.answerable and question.gold}
    for record in latest(records).values():
        if failed(record) and record["question_id"] in answerable:
            failures[record["system"], record["budget_tokens"]].append(record)
    grader = next(iter(graders_of(records)), None)
    found = []
    for (system, budget), cell in cells.items():
        tasks = [key(draw.record) for draw in cell]
        if not any(task in labels for task in tasks):
            continue
        human: list[float | None] = [
            sum(labels[task]) / len(labels[task]) if task in labels else None for task in tasks
        ]
        judged = [score(draw.record, grader) if grader else None for draw in cell]
        inclusion = _inclusion([draw.stratum for draw in cell], human)
        clusters = [draw.question.conversation for draw in cell]
        # A failure of the memory system is wrong for people and judges alike.
        for record in failures[system, budget]:
            human, judged, inclusion = [*human, 0.0], [*judged, 0.0], [*inclusion, 1.0]
            clusters.append(record["conversation"])
        # The estimate is unbiased for any prediction of an answer without a verdict; the judge's mean leaves it out.
        estimate = prediction_powered([verdict or 0.0 for verdict in judged], human, inclusion, clusters)
        pairs = [(verdict, id) for verdict, id in zip(judged, clusters, strict=True) if verdict is not None]
        judge = clustered_mean([verdict for verdict, _ in pairs], [id for _, id in pairs]) if grader else None
        false_accept, false_reject = rates_of_labels(judged, human, inclusion)
        found.append(
            {
                "system": system,
                "budget": budget,
                "labels": sum(task in labels for task in tasks),
                "unclear": sum(task in unclear and task not in labels for task in tasks),
                "weight": estimate.weight,
                "accuracy": _plain(estimate.estimate),
                "labels_alone": _plain(estimate.labels_alone),
                "judge": _plain(judge) if judge else None,
                "false_accept": false_accept,
                "false_reject": false_reject,
                "rogan_gladen": corrected(_plain(judge) if judge else None, false_accept, false_reject),
            }
        )
    return found


def _inclusion(strata: Sequence[tuple[Any, ...]], labels: Sequence[float | None]) -> list[float]:
    """The labelled share of each answer's stratum; strata without labels are pooled by verdict, then altogether."""
    for pooled in (strata, [stratum[:3] for stratum in strata], [stratum[:2] for stratum in strata]):
        size: dict[tuple[Any, ...], int] = defaultdict(int)
        labelled: dict[tuple[Any, ...], int] = defaultdict(int)
        for stratum, label in zip(pooled, labels, strict=True):
            size[stratum] += 1
            labelled[stratum] += label is not None
        if all(labelled[stratum] for stratum in size):
            break
    return [labelled[stratum] / size[stratum] for stratum in pooled]


def _plain(estimate: Estimate) -> Results:
    found = asdict(estimate)
    return {name: found[name] for name in ("mean", "low", "high", "n")}


def user_name() -> str:
    """Return the name of the person at this machine, or `unknown`."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
