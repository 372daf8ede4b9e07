"""Scores over tokens: the Pareto frontier of systems, and the area under the budget curve."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from operator import mul
from typing import Any

from memometer.benchmarks.protocol import Question
from memometer.budget import UNBOUNDED
from memometer.judging import sample_scores
from memometer.judging.graders import Grader, graders_of
from memometer.judging.sample_scores import Pair
from memometer.report.aggregate import SystemKey
from memometer.run.folder import Record, is_answered, latest
from memometer.stats.intervals import clustered_mean
from memometer.stats.pairwise import align, conversations
from memometer.systems import BASELINES

Results = dict[str, Any]


def measures(records: Iterable[Record]) -> dict[str, tuple[str, Grader | None]]:
    """List the measures of some records: name in reports -> measure and grader."""
    found: dict[str, tuple[str, Grader | None]] = {grader.name: ("judge", grader) for grader in graders_of(records)}
    return found | {"f1": ("f1", None), "evidence_recall": ("evidence_recall", None)}


def total_tokens(records: Sequence[Record], ingests: Iterable[Record]) -> Results | None:
    """Compute the mean number of tokens that a system needs per question.

    Counts prompts and replies of recall and answer, and an equal share of the ingest, in which each conversation is
    read once. Judging is not part of it. Without a reader, the recalled context takes the place of the prompt.

    Args:
        records: Records of one system at one budget, one per question.
        ingests: Ingests of that system; the last one of a conversation counts.

    Returns:
        `tokens`, `ingest_tokens` (their share of it) and `unreported`, the calls whose tokens no server reported, in
        which case the mean is a lower bound. None if a record has no token count, as in imported answers.
    """
    last = {ingest["conversation"]: ingest for ingest in ingests}
    read = [last[c] for c in {record["question_id"].rpartition("#")[0] for record in records} if c in last]
    if any(record["prompt_tokens"] is None for record in records):
        return None
    asked = sum(_tokens(record) if record["model"] else record["recall"]["tokens"] for record in records)
    ingested = sum(map(_tokens, read))
    return {
        "tokens": (asked + ingested) / len(records),
        "ingest_tokens": ingested / len(records),
        "unreported": sum(part["unreported"] for part in (*records, *read)),
    }


def _tokens(part: Record) -> int:
    return int(part["prompt_tokens"] + part["completion_tokens"])


def frontier(
    records: Sequence[Record], ingests: Sequence[Record], questions: Iterable[Question]
) -> dict[str, list[Results]]:
    """Compute score and tokens of every system at every budget over the answerable questions.

    Args:
        records: All attempts.
        ingests: All ingests.
        questions: The questions of the data.

    Returns:
        Measure -> points with `system`, `budget`, the fields of `total_tokens`, `score` with `low` and `high` (95 %,
        clustered by conversation, or None), `n`, and `best`: True if no other system except a baseline reaches the
        score with fewer tokens.
    """
    points: dict[str, list[Results]] = defaultdict(list)
    for (system, budget), pairs in answered_questions(records, questions).items():
        own = [ingest for ingest in ingests if ingest["system"] == system]
        tokens = total_tokens([record for _, record in pairs if record], own)
        if tokens is None:
            continue
        for name, measure in measures(records).items():
            if scores := sample_scores.by_question(pairs, *measure):
                points[name].append({"system": system, "budget": budget, **tokens, **_estimate(scores)})
    for of_measure in points.values():
        memories = [point for point in of_measure if point["system"] not in BASELINES]
        for point in of_measure:
            point["best"] = point in memories and not any(_dominates(other, point) for other in memories)
    return dict(points)


def _dominates(a: Results, b: Results) -> bool:
    no_worse = a["tokens"] <= b["tokens"] and a["score"] >= b["score"]
    return bool(no_worse and (a["tokens"] < b["tokens"] or a["score"] > b["score"]))


def areas(records: Sequence[Record], questions: Iterable[Question]) -> dict[str, dict[str, Results]]:
    """Compute the area under the budget curve of every system over the answerable questions.

    The curve joins the points (log budget, mean score) of a system by straight lines. The area divided by
    log(largest budget) - log(smallest) is its mean height in [0, 1]: the expected score if the logarithm of the budget
    is uniformly distributed. Only questions with a score at all budgets count.

    Args:
        records: All attempts.
        questions: The questions of the data.

    Returns:
        Measure -> system -> `area` with `low` and `high` (95 %, clustered by conversation), `n`, and `budgets`, the
        smallest and the largest; areas over different budgets are not comparable. Systems with one budget have none.
    """
    by_system: dict[str, dict[int, list[Pair]]] = defaultdict(dict)
    for (system, budget), pairs in answered_questions(records, questions).items():
        if 0 < budget < UNBOUNDED:
            by_system[system][budget] = pairs
    found: dict[str, dict[str, Results]] = defaultdict(dict)
    for system, budgets in by_system.items():
        sizes = sorted(budgets)
        if len(sizes) < 2:
            continue
        weights = _trapezoid_weights([math.log(size) for size in sizes])
        for name, measure in measures(records).items():
            ids, heights = align(*(sample_scores.by_question(budgets[size], *measure) for size in sizes))
            if ids:
                means = [sum(map(mul, weights, column)) for column in zip(*heights, strict=True)]
                estimate = _estimate(dict(zip(ids, means, strict=True)))
                found[name][system] = {"area": estimate.pop("score"), **estimate, "budgets": [sizes[0], sizes[-1]]}
    return dict(found)


def _trapezoid_weights(points: Sequence[float]) -> list[float]:
    """Return the weight of each value in the mean of a piecewise linear curve (trapezoidal rule)."""
    gaps = [b - a for a, b in pairwise(points)]
    return [(before + after) / 2 / sum(gaps) for before, after in zip([0.0, *gaps], [*gaps, 0.0], strict=True)]


def answered_questions(records: Iterable[Record], questions: Iterable[Question]) -> dict[SystemKey, list[Pair]]:
    """Group the answerable questions with a result by system and budget, each with the attempt that counts."""
    by_id = {question.id: question for question in questions if question.answerable}
    groups: dict[SystemKey, list[Pair]] = defaultdict(list)
    for record in latest(records).values():
        if record["question_id"] in by_id and is_answered(record):
            groups[record["system"], record["budget_tokens"]].append((by_id[record["question_id"]], record))
    return groups


def _estimate(scores: Mapping[str, float]) -> Results:
    estimate = clustered_mean(list(scores.values()), conversations(scores))
    return {"score": estimate.mean, "low": estimate.low, "high": estimate.high, "n": estimate.n}
