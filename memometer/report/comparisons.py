"""The paired comparisons of a run, and the warnings about few conversations and subsets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

from memometer.benchmarks.protocol import Question
from memometer.judging import sample_scores
from memometer.judging.graders import graders_of
from memometer.report.aggregate import SystemKey, grouped
from memometer.run.folder import Key, Record
from memometer.stats.intervals import FEW_CLUSTERS, READABLE_CLUSTERS, min_sign_flip_p
from memometer.stats.pairwise import SystemScores, compare_family, strongest
from memometer.systems import BASELINES, SIMPLE

Results = dict[str, Any]


def compare_systems(
    records: Sequence[Record], questions: Iterable[Question], planned: Iterable[Key], *, reference: str = ""
) -> list[Results]:
    """Compare each system with one reference over the answerable questions, by every measure and grader of the run.

    The reference is a named system, or the strongest of the simple ones (`memometer.systems.SIMPLE`). Without either,
    all systems are compared with each other. At each budget (`level`) the better of the baselines none and refusal is
    compared with the reference too. The tests are adjusted over one measure at one budget.

    Args:
        records: All attempts.
        questions: The questions of the data.
        planned: What was planned.
        reference: The system that all others are compared with; empty for the strongest simple one.

    Returns:
        Comparisons as `memometer.stats.pairwise` gives them, with `level`. Those with the reference have it as `b`.
    """
    groups = grouped(records, questions, planned)
    pairs = {key: [pair for pair in of if pair[0].answerable] for key, of in groups.items()}
    found: list[Results] = []
    for measure, grader in [("judge", g) for g in graders_of(records)] + [("f1", None), ("evidence_recall", None)]:
        systems = {
            key: SystemScores(*key, scores)
            for key, of in pairs.items()
            if (scores := sample_scores.by_question(of, measure, grader))
        }
        chosen = reference or strongest(list(systems.values()), SIMPLE)
        for level, matches in _matches(systems, chosen, with_floor=measure != "evidence_recall").items():
            name = grader.name if grader else None
            family = compare_family([(systems[a], systems[b], None) for a, b in matches], measure, grader=name)
            found += [{**comparison, "level": level} for comparison in family]
    return found


def _matches(
    systems: dict[SystemKey, SystemScores], reference: str, *, with_floor: bool
) -> dict[int, list[tuple[SystemKey, SystemKey]]]:
    """Return the pairs to compare by budget; a system with a single budget is compared at every budget."""
    budgets: dict[str, list[int]] = defaultdict(list)
    for system, budget in systems:
        budgets[system].append(budget)
    baselines = {name: budgets.pop(name) for name in BASELINES if name in budgets}
    levels = baselines.get("oracle") or sorted({budget for of in budgets.values() for budget in of})
    floors = [systems[name, 0] for name in ("none", "refusal") if with_floor and (name, 0) in systems]
    floor = [max(floors, key=lambda one: one.mean)] if floors else []
    matches: dict[int, list[tuple[SystemKey, SystemKey]]] = {}
    for level in levels:
        keys = [
            (system, level if level in of else of[0]) for system, of in budgets.items() if level in of or len(of) == 1
        ]
        others, of_floor = list(combinations(keys, 2)), keys
        if chosen := [key for key in keys if key[0] == reference]:
            others, of_floor = [(key, chosen[0]) for key in keys if key != chosen[0]], chosen
        matches[level] = others + [(a, (b.system, b.budget)) for a in of_floor for b in floor]
    return matches


def warnings_of(asked: Sequence[Question], everything: Sequence[Question]) -> list[str]:
    """Warn of few conversations and of a subset of the questions.

    Args:
        asked: The questions of the run.
        everything: The questions of the data.

    Returns:
        Sentences.
    """
    found = []
    clusters = len({question.conversation for question in asked})
    if clusters <= FEW_CLUSTERS:
        found.append(few_clusters(clusters))
    for name, only_answerable in (("answerable questions", True), ("questions", False)):
        n, full = (sum(question.answerable or not only_answerable for question in of) for of in (asked, everything))
        if n < full:
            found.append(f"A subset: {n:,} of {full:,} {name}.")
    return found


def few_clusters(clusters: int) -> str:
    """Warn that intervals and tests rest on few conversations.

    Args:
        clusters: Number of conversations.

    Returns:
        A sentence with the smallest possible p-value.
    """
    if clusters < 2:
        return "One conversation: no interval or test can generalise to other conversations."
    smallest = min_sign_flip_p(clusters)
    freedom = "1 degree of freedom" if clusters == 2 else f"{clusters - 1} degrees of freedom"
    few = ", which is too few to read them" if clusters < READABLE_CLUSTERS else ""
    return f"Only {clusters} conversations: intervals have {freedom}{few}, and no p is below {smallest:.3g}."
