"""Paired comparisons of systems on the same questions: what has to stand beside any ranking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from memometer.judging.graders import Grading
from memometer.stats import sample_scores as scores
from memometer.stats.intervals import holm, paired

Results = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Entrant:
    """One system at one budget, and what each question scored (`memometer.stats.sample_scores.by_question`);
    `run` tells runs apart."""

    system: str
    budget: int
    scores: dict[str, float]
    run: str = ""

    @property
    def mean(self) -> float:
        return sum(self.scores.values()) / max(1, len(self.scores))


def versus(
    a: Entrant, b: Entrant, measure: str, *, grading: Grading | None = None, category: str | None = None
) -> Results:
    """One comparison over the questions that both have a score for: the fields of `intervals.Comparison`, with
    who was compared, by what, and in which category (null for all that were chosen)."""
    ids, (mine, theirs) = scores.align(a.scores, b.scores)
    return {
        "a": place(a),
        "b": place(b),
        "measure": measure,
        "grading": grading.name if grading else None,
        "category": category,
        **asdict(paired(mine, theirs, scores.conversations(ids))),
    }


def corrected(family: Sequence[Results]) -> list[Results]:
    """The comparisons with Holm's correction over all of them (`p_holm`, of the sign-flip p) and their number
    (`family`): whoever looks at many differences finds one."""
    tested = [comparison for comparison in family if comparison["p_permutation"] is not None]
    p_values = holm([comparison["p_permutation"] for comparison in tested])
    by_place = dict(zip(map(id, tested), p_values, strict=True))
    return [{**comparison, "p_holm": by_place.get(id(comparison)), "family": len(tested)} for comparison in family]


def place(entrant: Entrant) -> Results:
    """Where an entrant is found: its system and budget, and its run where there are several."""
    who: Results = {"system": entrant.system, "budget": entrant.budget}
    return {"run": entrant.run, **who} if entrant.run else who
