"""What tokens bought: accuracy over total tokens, and the area under the budget curve."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from locomo.controls import CONTROLS
from locomo.dataset import ANSWERABLE, Question
from locomo.evaluate import UNBOUNDED
from locomo.gradings import gradings, score
from locomo.metrics import chosen_option, evidence_recall, official_f1
from locomo.run_folder import Record, is_answered, latest
from locomo.statistics import clustered_mean

Results = dict[str, Any]
Score = Callable[[Question, Record], float | None]
"""What an answered record scores, 0 to 1; None where it is not scored."""


def scores(records: Iterable[Record]) -> Mapping[str, Score]:
    """What the records can be scored by: evidence recall, F1, and every grading under its name."""

    def f1(question: Question, record: Record) -> float | None:
        answer = record["answer"]
        return None if answer is None else official_f1(question, chosen_option(question, record["form"], answer))

    found: dict[str, Score] = {
        "evidence_recall": lambda question, record: evidence_recall(question.evidence, record["recall"]["turn_ids"]),
        "f1": f1,
    }
    for grading in gradings(records):
        found[grading.name] = lambda _, record, grading=grading: score(record, grading)  # type: ignore[misc]
    return found


def total_tokens(records: Sequence[Record], ingests: Iterable[Record]) -> Results:
    """The mean tokens that a system takes for a question: prompts and replies of recall and answer, and the same of
    ingest, each conversation read once, shared equally among the questions asked. Judging is not the system's cost.
    Where nobody read, what was recalled for a question takes the place of its prompt. With `unreported` calls the mean
    is a lower bound.

    Args:
        records: of one system at one budget, one a question.
        ingests: of that system; of a conversation read twice, the last reading counts.
    """
    last = {ingest["conversation"]: ingest for ingest in ingests}
    mine = [last[c] for c in {record["question_id"].split("#")[0] for record in records} if c in last]
    asked = sum(
        record["prompt_tokens"] + record["completion_tokens"] if record["model"] else record["recall"]["tokens"]
        for record in records
    )
    read = sum(ingest["prompt_tokens"] + ingest["completion_tokens"] for ingest in mine)
    unreported = sum(part["unreported"] for part in (*records, *mine))
    return {
        "tokens": (asked + read) / len(records),
        "ingest_tokens": read / len(records),
        "unreported": unreported,
    }


def frontier(
    records: Iterable[Record], ingests: Iterable[Record], questions: Iterable[Question], measures: Mapping[str, Score]
) -> dict[str, list[Results]]:
    """By measure, a point for each system and budget, categories 1-4: `tokens`, `ingest_tokens` and `unreported` as
    `total_tokens` gives them, `score` with `low`, `high` (95 %, clustered by conversation, or null) and `n`, and
    `best`: whether no other system reaches its score with fewer tokens, the controls aside."""
    asked = {question.id: question for question in questions}
    ingests = list(ingests)
    points: dict[str, list[Results]] = {measure: [] for measure in measures}
    for (system, budget), mine in _answered(records, asked).items():
        cost = total_tokens(mine, (ingest for ingest in ingests if ingest["system"] == system))
        for measure, scored in measures.items():
            values = _means({0: mine}, asked, scored)
            if values:
                found = _interval({question: means[0] for question, means in values.items()})
                points[measure].append({"system": system, "budget": budget, **cost, **found})
    for of_measure in points.values():
        for point in of_measure:
            point["best"] = point["system"] not in CONTROLS and not any(
                (other["tokens"] <= point["tokens"] and other["score"] > point["score"])
                or (other["tokens"] < point["tokens"] and other["score"] == point["score"])
                for other in of_measure
                if other["system"] not in CONTROLS
            )
    return {measure: of_measure for measure, of_measure in points.items() if of_measure}


def areas(
    records: Iterable[Record], questions: Iterable[Question], measures: Mapping[str, Score]
) -> dict[str, dict[str, Results]]:
    """By measure and system, the area under the budget curve, categories 1-4.

    The curve joins the points (log budget, mean score) of a system's budgets by straight lines; the area under it,
    divided by log(largest budget) - log(smallest), is its mean height, 0 to 1: the score to expect when every factor
    of the budget between the two is equally likely. Over the questions that are scored at all of the budgets, so that
    each has an area of its own and `low`, `high` are the clustered 95 % interval of their mean. `budgets` are
    [smallest, largest], in tokens: areas over different ones do not compare. With fewer than two there is none.
    """
    asked = {question.id: question for question in questions}
    by_system: dict[str, dict[int, list[Record]]] = defaultdict(dict)
    for (system, budget), mine in _answered(records, asked).items():
        if 0 < budget < UNBOUNDED:
            by_system[system][budget] = mine
    found: dict[str, dict[str, Results]] = {measure: {} for measure in measures}
    for system, budgets in by_system.items():
        if len(budgets) < 2:
            continue
        sizes = sorted(budgets)
        weights = _weights([math.log(size) for size in sizes])
        for measure, scored in measures.items():
            values = _means({size: budgets[size] for size in sizes}, asked, scored)
            heights = {
                id: sum(weight * means[size] for weight, size in zip(weights, sizes, strict=True))
                for id, means in values.items()
                if len(means) == len(sizes)
            }
            if heights:
                of_all = _interval(heights)
                found[measure][system] = {"area": of_all.pop("score"), **of_all, "budgets": [sizes[0], sizes[-1]]}
    return {measure: systems for measure, systems in found.items() if systems}


def _weights(points: Sequence[float]) -> list[float]:
    """What each height weighs in the mean height of straight lines between increasing points."""
    gaps = [b - a for a, b in pairwise(points)]
    return [(before + after) / 2 / sum(gaps) for before, after in zip([0.0, *gaps], [*gaps, 0.0], strict=True)]


def _answered(records: Iterable[Record], asked: Mapping[str, Question]) -> dict[tuple[str, int], list[Record]]:
    groups: dict[tuple[str, int], list[Record]] = defaultdict(list)
    for record in latest(records).values():
        question = asked.get(record["question_id"])
        if question and question.category in ANSWERABLE and is_answered(record):
            groups[record["system"], record["budget_tokens"]].append(record)
    return groups


def _means(
    groups: Mapping[int, Iterable[Record]],
    asked: Mapping[str, Question],
    scored: Score,
) -> dict[str, dict[int, float]]:
    """Question id -> budget -> score, where there is one."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for budget, records in groups.items():
        for record in records:
            value = scored(asked[record["question_id"]], record)
            if value is not None:
                found[record["question_id"]][budget] = value
    return found


def _interval(values: Mapping[str, float]) -> Results:
    estimate = clustered_mean(list(values.values()), [id.split("#")[0] for id in values])
    return {"score": estimate.mean, "low": estimate.low, "high": estimate.high, "n": estimate.n}
