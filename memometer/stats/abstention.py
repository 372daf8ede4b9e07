"""Abstention: how well a run detects unanswerable questions, and a rule fitted on validation questions.

No system sees if a question is answerable. In LOCOMO most unanswerable questions swap the two speakers, so detection
rates measure that artefact rather than a general skill.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from memometer import benchmarks
from memometer.benchmarks.metrics import abstains
from memometer.benchmarks.protocol import Question
from memometer.errors import UserError
from memometer.reader.abstention import AbstentionRule, AbstentionSignals
from memometer.run.folder import Record, evaluation_options, failed, is_answered, latest, read_manifest, read_records

Results = dict[str, Any]
Pairs = Sequence[tuple[Question, Record]]

MIN_CORRECT_F1 = 0.5
"""An answer with at least this F1 counts as correct; no judge is used, because its verdicts may be withheld."""


class AbstentionError(UserError, ValueError):
    """No rule can be fitted."""


def signals_of(record: Record) -> AbstentionSignals:
    """Return the signals of a record as they were when the question was asked."""
    answer = record.get("raw_answer") or record["answer"] or ""
    absent = record.get("status") == "absent" or abstains(answer)
    return AbstentionSignals(absent, record.get("attributed"), record.get("speaker_gap"))


def metrics(pairs: Pairs, rule: AbstentionRule | None = None) -> Results:
    """Measure how well unanswerable questions are separated from answerable ones.

    Questions are ordered by the score of `rule`, else by the score of the run's own rule, else by the reader's
    abstention and then the speaker gap.

    Args:
        pairs: Questions and the records of their answers.
        rule: The abstention rule.

    Returns:
        `auc`, `caught_at_5` and `caught_at_10` (`separation`). With answers also `risk_coverage`, points [coverage,
        risk] with the most certain answers first, where risk is 1 - score of the reader's answer; `risk_coverage_auc`,
        the mean risk; `twin_accuracy` with `twins`, the share of pairs of an answerable and an unanswerable question
        about the same evidence that are both right; `over_abstention` with `over_abstention_n`, the share of answerable
        questions that abstain. None if undefined.
    """
    done = [(question, record) for question, record in pairs if is_answered(record)]
    scores = np.array([_score(record, rule) for _, record in done])
    unanswerable = np.array([question.gold is None for question, _ in done], dtype=bool)
    has_signal = any(record["answer"] is not None or record.get("speaker_gap") is not None for _, record in done)
    found = separation(scores[unanswerable & has_signal], scores[~unanswerable])
    answered = [(question, record) for question, record in done if record["answer"] is not None]
    if not answered:
        return found
    wrong = [
        1.0 - question.score(record.get("raw_answer") or record["answer"], record["option_order"])
        for question, record in answered
    ]
    order = np.argsort(scores, kind="stable")
    risks = np.cumsum(np.array(wrong)[order]) / np.arange(1, len(wrong) + 1)
    abstentions = [abstains(record["answer"]) for question, record in answered if question.answerable]
    twins = [_twin_is_right(*twin) for twin in _twins(answered)]
    return found | {
        "risk_coverage": [[(i + 1) / len(risks), float(risks[i])] for i in _points(len(risks))],
        "risk_coverage_auc": float(risks.mean()),
        "twin_accuracy": sum(twins) / len(twins) if twins else None,
        "twins": len(twins),
        "over_abstention": sum(abstentions) / len(abstentions) if abstentions else None,
        "over_abstention_n": len(abstentions),
    }


def separation(unanswerable: np.ndarray, answerable: np.ndarray) -> Results:
    """Measure how well scores separate unanswerable from answerable questions.

    Args:
        unanswerable: Scores that should be higher, shape (m,).
        answerable: Scores that should be lower, shape (n,).

    Returns:
        `auc`, in which ties count half, and `caught_at_5` and `caught_at_10`, the share of unanswerable questions above
        the threshold that 5 % and 10 % of the answerable ones exceed. None if one side is empty.
    """
    if not len(unanswerable) or not len(answerable):
        return {"auc": None, "caught_at_5": None, "caught_at_10": None}
    above = (unanswerable[:, None] > answerable[None, :]).mean()
    ties = (unanswerable[:, None] == answerable[None, :]).mean()
    return {
        "auc": float(above + ties / 2),
        "caught_at_5": float((unanswerable > threshold(answerable, 0.05)).mean()),
        "caught_at_10": float((unanswerable > threshold(answerable, 0.10)).mean()),
    }


def threshold(answerable: np.ndarray, false_abstention: float) -> float:
    """Find the lowest score that at most a given share of the answerable questions exceeds.

    Args:
        answerable: Scores, shape (n,).
        false_abstention: The share, 0 to 1.

    Returns:
        The score.
    """
    return float(np.quantile(answerable, 1 - false_abstention, method="higher"))


def _score(record: Record, rule: AbstentionRule | None) -> float:
    signals = signals_of(record)
    if rule:
        return rule.score(signals)
    if record.get("abstention_score") is not None:
        return float(record["abstention_score"])
    # The speaker gap is a few standard deviations at most; a question that names nobody is almost always answerable.
    return 100.0 * signals.absent + (-50.0 if signals.speaker_gap is None else signals.speaker_gap)


def _points(n: int, *, most: int = 100) -> list[int]:
    return sorted({round((i + 1) * n / min(n, most)) - 1 for i in range(min(n, most))})


def _twins(pairs: Pairs) -> Iterable[tuple[tuple[Question, Record], tuple[Question, Record]]]:
    """Pair answerable questions with unanswerable variations of them, asked freely, about the same evidence."""
    swapped: dict[tuple[str, frozenset[str]], list[tuple[Question, Record]]] = {}
    for question, record in pairs:
        if not question.answerable and question.evidence and record["option_order"] == "free":
            swapped.setdefault((question.conversation, frozenset(question.evidence)), []).append((question, record))
    for question, record in pairs:
        if question.has_twins:
            for twin in swapped.get((question.conversation, frozenset(question.evidence)), ()):
                yield (question, record), twin


def _twin_is_right(single: tuple[Question, Record], swapped: tuple[Question, Record]) -> bool:
    question, record = single
    return question.score(record["answer"]) >= MIN_CORRECT_F1 and abstains(swapped[1]["answer"])


def risk_at(found: Results, coverage: float) -> float | None:
    """Return the risk at the point of the risk-coverage curve nearest to a coverage."""
    points = found.get("risk_coverage")
    return min(points, key=lambda point: abs(point[0] - coverage))[1] if points else None


def fit(pairs: Pairs, *, false_abstention: float = 0.05) -> AbstentionRule:
    """Fit an abstention rule by logistic regression (L2 penalty, balanced classes).

    Args:
        pairs: Questions and the records of their answers.
        false_abstention: Share of the answerable questions that exceed the threshold.

    Returns:
        The rule.

    Raises:
        AbstentionError: The questions are all answerable or all unanswerable.
    """
    from scipy.optimize import minimize

    signals = [signals_of(record).vector() for _, record in pairs if is_answered(record)]
    y = np.array([float(question.gold is None) for question, record in pairs if is_answered(record)])
    if not 0 < y.sum() < len(y):
        raise AbstentionError("the run needs answerable and unanswerable questions of the validation part.")
    names = list(signals[0])
    x = np.array([[row[name] for name in names] for row in signals])
    weight = np.where(y == 1, 0.5 / y.sum(), 0.5 / (1 - y).sum())

    def loss(parameters: np.ndarray) -> float:
        margins = x @ parameters[1:] + parameters[0]
        return float(
            weight @ np.logaddexp(0, np.where(y == 1, -margins, margins)) + 1e-3 * parameters[1:] @ parameters[1:]
        )

    fitted = minimize(loss, np.zeros(len(names) + 1), method="L-BFGS-B").x[1:]
    rule = AbstentionRule({name: round(float(w), 4) for name, w in zip(names, fitted, strict=True)}, 0.0)
    scores = np.array([rule.score(signals_of(record)) for question, record in pairs if question.gold is not None])
    return AbstentionRule(rule.weights, round(threshold(scores, false_abstention), 4))


def fit_run(path: Path, *, system: str, false_abstention: float) -> tuple[AbstentionRule, Results, int, str]:
    """Fit an abstention rule on the validation questions of a run.

    Args:
        path: The run folder.
        system: The system whose records are used.
        false_abstention: Share of the answerable questions that exceed the threshold.

    Returns:
        The rule, its metrics on the same questions, their number, and the prefix of printed lines.

    Raises:
        UserError: The run or its data cannot be read, or has no questions of both kinds.
    """
    config = evaluation_options(read_manifest(path), path)
    data = benchmarks.read(config.get("benchmark"), config.get("data"))
    split = config["split"].rpartition(":")[0] or "default"
    questions = {q.id: q for conversation in data.part(f"{split}:validation") for q in conversation.questions}
    found = [
        (questions[record["question_id"]], record)
        for record in latest(read_records(path)).values()
        if record["system"] == system
        and record["question_id"] in questions
        and is_answered(record)
        and not failed(record)
    ]
    rule = fit(found, false_abstention=false_abstention)
    if not data.kind:  # results on sample or synthetic data prove nothing anyway
        rule = replace(rule, fitted_on=tuple(dict.fromkeys(question.conversation for question, _ in found)))
    return rule, metrics(found, rule), len(found), data.prefix
