"""What tokens bought: accuracy over total tokens, and the area under the budget curve."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from operator import mul
from typing import Any

from memometer.benchmarks.protocol import Question
from memometer.budget import UNBOUNDED
from memometer.judging.graders import Grading, gradings
from memometer.run.folder import Record, is_answered, latest
from memometer.stats import sample_scores
from memometer.stats.intervals import clustered_mean
from memometer.stats.sample_scores import Pair
from memometer.systems import BASELINES

Results = dict[str, Any]


def measures(records: Iterable[Record]) -> dict[str, tuple[str, Grading | None]]:
    """What records can be scored by, under the names that reports use: every grading, F1, evidence recall."""
    found: dict[str, tuple[str, Grading | None]] = {grading.name: ("judge", grading) for grading in gradings(records)}
    return found | {"f1": ("f1", None), "evidence_recall": ("evidence_recall", None)}


def total_tokens(records: Sequence[Record], ingests: Iterable[Record]) -> Results | None:
    """The mean tokens that a system takes for a question: prompts and replies of recall and answer, and the same of
    ingest, each conversation read once, shared equally among the questions asked. Judging is not the system's cost.
    Where nobody read, what was recalled for a question takes the place of its prompt. With `unreported` calls the mean
    is a lower bound. None where a record knows no tokens, as of answers that others published.

    Args:
        records: of one system at one budget, one a question.
        ingests: of that system; of a conversation read twice, the last reading counts.
    """
    last = {ingest["conversation"]: ingest for ingest in ingests}
    mine = [last[c] for c in {record["question_id"].split("#")[0] for record in records} if c in last]
    if any(record["prompt_tokens"] is None for record in records):
        return None
    asked = sum(_tokens(record) if record["model"] else record["recall"]["tokens"] for record in records)
    read = sum(map(_tokens, mine))
    return {
        "tokens": (asked + read) / len(records),
        "ingest_tokens": read / len(records),
        "unreported": sum(part["unreported"] for part in (*records, *mine)),
    }


def _tokens(part: Record) -> int:
    return int(part["prompt_tokens"] + part["completion_tokens"])


def frontier(
    records: Sequence[Record], ingests: Sequence[Record], questions: Iterable[Question]
) -> dict[str, list[Results]]:
    """By measure, a point for each system and budget, answerable questions: `tokens`, `ingest_tokens` and `unreported`
    as `total_tokens` gives them, `score` with `low`, `high` (95 %, clustered by conversation, or null) and `n`, and
    `best`: whether no other system reaches its score with fewer tokens, the controls aside."""
    points: dict[str, list[Results]] = defaultdict(list)
    for (system, budget), pairs in with_results(records, questions).items():
        mine = [ingest for ingest in ingests if ingest["system"] == system]
        cost = total_tokens([record for _, record in pairs if record], mine)
        if cost is None:
            continue
        for name, measure in measures(records).items():
            if found := sample_scores.by_question(pairs, *measure):
                points[name].append({"system": system, "budget": budget, **cost, **_interval(found)})
    for of_measure in points.values():
        memories = [point for point in of_measure if point["system"] not in BASELINES]
        for point in of_measure:
            point["best"] = point in memories and not any(_beats(other, point) for other in memories)
    return dict(points)


def _beats(a: Results, b: Results) -> bool:
    no_worse = a["tokens"] <= b["tokens"] and a["score"] >= b["score"]
    return bool(no_worse and (a["tokens"] < b["tokens"] or a["score"] > b["score"]))


def areas(records: Sequence[Record], questions: Iterable[Question]) -> dict[str, dict[str, Results]]:
    """By measure and system, the area under the budget curve, answerable questions.

    The curve joins the points (log budget, mean score) of a system's budgets by straight lines; the area under it,
    divided by log(largest budget) - log(smallest), is its mean height, 0 to 1: the score to expect when every factor
    of the budget between the two is equally likely. Over the questions that are scored at all of the budgets, so that
    each has an area of its own and `low`, `high` are the clustered 95 % interval of their mean. `budgets` are
    [smallest, largest], in tokens: areas over different ones do not compare. With fewer than two there is none.
    """
    by_system: dict[str, dict[int, list[Pair]]] = defaultdict(dict)
    for (system, budget), pairs in with_results(records, questions).items():
        if 0 < budget < UNBOUNDED:
            by_system[system][budget] = pairs
    found: dict[str, dict[str, Results]] = defaultdict(dict)
    for system, budgets in by_system.items():
        sizes = sorted(budgets)
        if len(sizes) < 2:
            continue
        weights = _weights([math.log(size) for size in sizes])
        for name, measure in measures(records).items():
            ids, heights = sample_scores.align(*(sample_scores.by_question(budgets[size], *measure) for size in sizes))
            if ids:
                mean = [sum(map(mul, weights, column)) for column in zip(*heights, strict=True)]
                of_all = _interval(dict(zip(ids, mean, strict=True)))
                found[name][system] = {"area": of_all.pop("score"), **of_all, "budgets": [sizes[0], sizes[-1]]}
    return dict(found)


def _weights(points: Sequence[float]) -> list[float]:
    """What each height weighs in the mean height of straight lines between increasing points."""
    gaps = [b - a for a, b in pairwise(points)]
    return [(before + after) / 2 / sum(gaps) for before, after in zip([0.0, *gaps], [*gaps, 0.0], strict=True)]


def with_results(records: Iterable[Record], questions: Iterable[Question]) -> dict[tuple[str, int], list[Pair]]:
    """(system, budget) -> the answerable questions with a result, each with it."""
    asked = {question.id: question for question in questions if question.answerable}
    groups: dict[tuple[str, int], list[Pair]] = defaultdict(list)
    for record in latest(records).values():
        if record["question_id"] in asked and is_answered(record):
            groups[record["system"], record["budget_tokens"]].append((asked[record["question_id"]], record))
    return groups


def _interval(values: Mapping[str, float]) -> Results:
    estimate = clustered_mean(list(values.values()), sample_scores.conversations(values))
    return {"score": estimate.mean, "low": estimate.low, "high": estimate.high, "n": estimate.n}
