"""Paired comparisons of systems on the questions that both answered, with Holm's correction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from memometer.stats.intervals import holm, paired

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


def holm_corrected(family: Sequence[Results]) -> list[Results]:
    """Correct a family of comparisons for multiple testing.

    Args:
        family: Comparisons as `compare_pair` returns them.

    Returns:
        The comparisons with `p_holm` (Holm's correction of the sign-flip p-value) and `family` (number of tests).
    """
    tested = [number for number, comparison in enumerate(family) if comparison["p_permutation"] is not None]
    p_values = dict(zip(tested, holm([family[number]["p_permutation"] for number in tested]), strict=True))
    return [
        {**comparison, "p_holm": p_values.get(number), "family": len(tested)}
        for number, comparison in enumerate(family)
    ]


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
