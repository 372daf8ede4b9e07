"""The form of answers: their length and hedges, and the score as if all systems gave answers of the same length."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from memometer.benchmarks.protocol import Question
from memometer.judging import sample_scores
from memometer.judging.graders import Grader
from memometer.judging.hedges import hedge
from memometer.judging.sample_scores import Pair
from memometer.report.aggregate import grouped
from memometer.report.presenter import Table
from memometer.report.summary import shown_budget
from memometer.run.folder import Key, Record, failed, is_answered
from memometer.stats.number_format import UNKNOWN, number, percent, rate
from memometer.stats.standardised import standardised_mean

Results = dict[str, Any]

LENGTH_CLASSES = 4
"""Number of length classes, with about as many answers each over all systems."""


def measure(
    records: Sequence[Record],
    questions: Sequence[Question],
    planned: Sequence[Key],
    graders: Sequence[Grader],
    withheld: Collection[str] = (),
) -> dict[str, dict[str, Results]]:
    """Describe the answers to answerable questions.

    Args:
        records: All attempts.
        questions: The questions of the data.
        planned: What was planned.
        graders: The graders; the first is the run's own.
        withheld: Names of graders whose accuracy may not be shown.

    Returns:
        System -> budget -> `answers`; `words`, their mean number; `hedged`, the share of hedges, and `hedges`, kind ->
        number; `measure` (judge or f1); `score`; and `length_controlled` ({score, interval}), the score with the
        length distribution of all systems together. Empty without answers.
    """
    own = [grader for grader in graders[:1] if grader.name not in withheld]
    name, grader = ("judge", own[0]) if own else ("f1", None)
    cells = {
        key: [(q, r) for q, r in pairs if r and q.answerable and is_answered(r) and not failed(r) and r["answer"]]
        for key, pairs in grouped(records, questions, planned).items()
    }
    cells = {key: pairs for key, pairs in cells.items() if pairs}
    lengths = sorted(_words(record) for pairs in cells.values() for _, record in pairs)
    limits = sorted({lengths[len(lengths) * i // LENGTH_CLASSES] for i in range(1, LENGTH_CLASSES)}) if lengths else []
    weights = {stratum: n / len(lengths) for stratum, n in Counter(bisect_right(limits, n) for n in lengths).items()}
    found: dict[str, dict[str, Results]] = {}
    for (system, budget), pairs in cells.items():
        found.setdefault(system, {})[str(budget)] = _form(pairs, name, grader, limits, weights)
    return found


def _form(
    pairs: Sequence[tuple[Question, Record]],
    name: str,
    grader: Grader | None,
    limits: Sequence[int],
    weights: Mapping[Any, float],
) -> Results:
    kinds = Counter(
        kind for question, record in pairs if (kind := hedge(question.text, question.gold or "", record["answer"]))
    )
    scored: list[Pair] = list(pairs)
    scores = sample_scores.by_question(scored, name, grader)
    strata = {question.id: bisect_right(limits, _words(record)) for question, record in pairs}
    ids = list(scores)
    estimate = standardised_mean(
        list(scores.values()), [strata[id] for id in ids], weights, [id.rpartition("#")[0] for id in ids]
    )
    return {
        "answers": len(pairs),
        "words": sum(_words(record) for _, record in pairs) / len(pairs),
        "hedged": kinds.total() / len(pairs),
        "hedges": dict(kinds),
        "measure": name,
        "score": sum(scores.values()) / len(scores) if scores else None,
        "length_controlled": {
            "score": estimate.mean,
            "interval": None if estimate.low is None else [estimate.low, estimate.high],
        },
        "n": len(scores),
    }


def _words(record: Record) -> int:
    return len(str(record["answer"]).split())


def tables(found: Mapping[str, Mapping[str, Results]]) -> list[Table]:
    """Build the table of `measure`; none without answers."""
    rows = [
        [
            system,
            shown_budget(budget),
            number(entry["answers"]),
            number(entry["words"], 1),
            percent(entry["hedged"]),
            ", ".join(f"{n} {kind}" for kind, n in entry["hedges"].items()) or UNKNOWN,
            percent(entry["score"]),
            rate(entry["length_controlled"]["score"], *(entry["length_controlled"]["interval"] or ())),
        ]
        for system, budgets in found.items()
        for budget, entry in budgets.items()
    ]
    measured = next((e["measure"] for budgets in found.values() for e in budgets.values()), "f1")
    name = sample_scores.MEASURES[measured]
    title = (
        f"Form of the answers to answerable questions. Length-controlled: {name} as if the answers of all systems had "
        "the same lengths; hedged: several candidates, or a refusal with a guess"
    )
    headers = ["system", "budget", "answers", "words", "hedged %", "hedges", name, "length-controlled"]
    return [Table(title, headers, rows)] if rows else []
