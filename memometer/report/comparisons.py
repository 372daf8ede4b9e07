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
from memometer.stats.intervals import FEW_CLUSTERS, min_sign_flip_p
from memometer.stats.pairwise import SystemScores, compare_pair, holm_corrected
from memometer.systems import BASELINES

Results = dict[str, Any]


def compare_systems(records: Sequence[Record], questions: Iterable[Question], planned: Iterable[Key]) -> list[Results]:
    """Compare systems pairwise over the answerable questions, by every measure and grader of the run.

    All systems at the same budget (`level`) are compared with each other and with the better of the baselines none and
    refusal. Holm's correction is over one measure at one budget.

    Args:
        records: All attempts.
        questions: The questions of the data.
        planned: What was planned.

    Returns:
        Comparisons as `memometer.stats.pairwise` gives them, with `level`.
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
        for level, matches in _matches(systems, with_floor=measure != "evidence_recall").items():
            name = grader.name if grader else None
            family = [compare_pair(systems[a], systems[b], measure, grader=name) for a, b in matches]
            found += [{**comparison, "level": level} for comparison in holm_corrected(family)]
    return found


def _matches(
    systems: dict[SystemKey, SystemScores], *, with_floor: bool
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
        matches[level] = list(combinations(keys, 2)) + [(a, (b.system, b.budget)) for a in keys for b in floor]
    return matches


def warnings_of(asked: Sequence[Question], everything: Sequence[Question], comparisons: Sequence[Results]) -> list[str]:
    """Warn of few conversations and of a subset of the questions.

    Args:
        asked: The questions of the run.
        everything: The questions of the data.
        comparisons: The comparisons of the run.

    Returns:
        Sentences.
    """
    found = []
    clusters = len({question.conversation for question in asked})
    if clusters <= FEW_CLUSTERS:
        found.append(few_clusters(clusters, max((c["family"] for c in comparisons), default=0)))
    for name, only_answerable in (("answerable questions", True), ("questions", False)):
        n, full = (sum(question.answerable or not only_answerable for question in of) for of in (asked, everything))
        if n < full:
            found.append(f"A subset: {n:,} of {full:,} {name}.")
    return found


def few_clusters(clusters: int, family: int = 0) -> str:
    """Warn that intervals and tests rest on few conversations.

    Args:
        clusters: Number of conversations.
        family: Number of comparisons that are corrected together.

    Returns:
        A sentence with the smallest possible p-value.
    """
    if clusters < 2:
        return "One conversation: no interval or test can generalise to other conversations."
    smallest = min_sign_flip_p(clusters)
    freedom = "1 degree of freedom" if clusters == 2 else f"{clusters - 1} degrees of freedom"
    sentence = f"Only {clusters} conversations: intervals have {freedom}"
    if smallest <= 0.05 < family * smallest:
        return f"{sentence}, and after Holm over {family} tests no p is below {min(1.0, family * smallest):.2f}."
    return f"{sentence}, and no sign-flip p is below {smallest:.3g}."
