"""Paired comparisons of systems on the questions that both answered, adjusted for multiple testing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from memometer.stats.intervals import paired
from memometer.stats.max_t import max_t
from memometer.stats.power import detectable_errors

Results = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SystemScores:
    """The scores of one system at one budget.

    Attributes:
        system: Name of the system.
        budget: Its budget in tokens.
        scores: Question id -> score in [0, 1].
        run: Name of the run; empty if all systems are of one run.
    """

    system: str
    budget: int
    scores: dict[str, float]
    run: str = ""

    @property
    def mean(self) -> float:
        """Mean score; 0.0 without questions."""
        return sum(self.scores.values()) / max(1, len(self.scores))

    @property
    def key(self) -> Results:
        """System and budget, and the run if there are several, as comparisons store them."""
        key: Results = {"system": self.system, "budget": self.budget}
        return {"run": self.run, **key} if self.run else key


def compare_pair(
    a: SystemScores, b: SystemScores, measure: str, *, grader: str | None = None, category: str | None = None
) -> Results:
    """Compare two systems on the questions that both have a score for.

    Args:
        a: The first system.
        b: The second system.
        measure: Name of the measure.
        grader: Name of the grader, if a judge gave the scores.
        category: The category of the questions; None for all.

    Returns:
        The fields of `memometer.stats.intervals.Comparison` with `a`, `b`, `measure`, `grader` and `category`.
    """
    ids, (first, second) = align(a.scores, b.scores)
    comparison = asdict(paired(first, second, conversations(ids)))
    return {"a": a.key, "b": b.key, "measure": measure, "grader": grader, "category": category, **comparison}


Match = tuple[SystemScores, SystemScores, str | None]
"""Two systems and the category of their questions; None for all categories."""


def compare_family(matches: Sequence[Match], measure: str, *, grader: str | None = None) -> list[Results]:
    """Compare pairs of systems and adjust their tests together.

    Args:
        matches: The pairs to compare.
        measure: Name of the measure.
        grader: Name of the grader, if a judge gave the scores.

    Returns:
        Comparisons as `compare_pair` returns them, with `p_adjusted` (the sign-flip test, adjusted by the maximum
        statistic of the family, see `memometer.stats.max_t`) and `family` (number of tests). `detectable` is the
        smallest true difference that this adjusted test finds with 80 % power.
    """
    found = [compare_pair(a, b, measure, grader=grader, category=category) for a, b, category in matches]
    tested = [number for number, comparison in enumerate(found) if comparison["p_permutation"] is not None]
    sums = [_sums(*matches[number][:2]) for number in tested]
    places = sorted({conversation for of in sums for conversation in of})
    p_values = dict(zip(tested, max_t([[of.get(place, 0.0) for place in places] for of in sums]), strict=True))
    for number, comparison in enumerate(found):
        error = comparison.pop("standard_error")
        errors = detectable_errors(comparison["clusters"], max(1, len(tested)))
        least = errors * error if errors and error else None
        comparison["detectable"] = least if least is not None and least < 1 else None
        comparison["p_adjusted"], comparison["family"] = p_values.get(number), len(tested)
    return found


def _sums(a: SystemScores, b: SystemScores) -> dict[str, float]:
    """Sum of the differences by conversation."""
    ids, (first, second) = align(a.scores, b.scores)
    sums: dict[str, float] = {}
    for conversation, x, y in zip(conversations(ids), first, second, strict=True):
        sums[conversation] = sums.get(conversation, 0.0) + x - y
    return sums


def strongest(systems: Sequence[SystemScores], names: Collection[str]) -> str:
    """Return the system of these names with the highest mean score over its budgets; empty if there is none."""
    means: dict[str, list[float]] = {}
    for one in systems:
        if one.system in names:
            means.setdefault(one.system, []).append(one.mean)
    return max(means, key=lambda name: sum(means[name]) / len(means[name]), default="")


def align(*systems: dict[str, float]) -> tuple[list[str], list[list[float]]]:
    """Keep the questions that all systems have a score for.

    Args:
        systems: Question id -> score of each system.

    Returns:
        The shared question ids, and the scores of each system on them.
    """
    shared = [id for id in systems[0] if all(id in system for system in systems[1:])]
    return shared, [[system[id] for id in shared] for system in systems]


def conversations(ids: Iterable[str]) -> list[str]:
    """Return the conversation of each question id, by which intervals are clustered."""
    return [id.rpartition("#")[0] for id in ids]
