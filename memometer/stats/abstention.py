"""Answering or abstaining: what a run's records say about it, and a rule fitted on validation questions.

    memometer fit-abstention runs/NAME [--out FILE] [--false-abstention 0.05]

prints the rule fitted on the validation conversations of a finished run, with what it catches, and writes it for
`evaluate.py --abstention FILE`. The label of the fit and of the report is whether a question is answerable. No system
is shown it. In LOCOMO mostly a swap of the two speakers separates the two kinds: an artefact of the data, not a skill.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from memometer import benchmarks
from memometer.benchmarks.metrics import abstains
from memometer.benchmarks.protocol import DataError, Question
from memometer.reader.abstention import AbstentionRule, AbstentionSignals
from memometer.run.folder import Record, RunFolder, RunFolderError, asked_of, failed, is_answered, latest

Results = dict[str, Any]
Pairs = Sequence[tuple[Question, Record]]

RIGHT_FROM = 0.5
"""The F1 from which an answer counts as right; no judge is asked, for it may be one whose verdicts are withheld."""


def signals_of(record: Record) -> AbstentionSignals:
    """The signals as they were when the question was asked."""
    said = record.get("said") or record["answer"] or ""
    absent = record.get("status") == "absent" or abstains(said)
    return AbstentionSignals(absent, record.get("attributed"), record.get("speaker_gap"))


def figures(pairs: Pairs, rule: AbstentionRule | None = None) -> Results:
    """How well unanswerable questions are told apart, over all questions.

    `auc`, `caught_at_5`, `caught_at_10`: of unanswerable against answerable questions, by the score of `rule`, or of
    the run's own, else by what the reader says and then the speaker gap. With answers also `risk_coverage`, a list of
    [coverage, risk] with the surest answers first and risk 1 - official score of what the reader said; its mean risk
    `risk_coverage_auc`; `twin_accuracy` with `twins`; and `over_abstention` on answerable questions with
    `over_abstention_n`. Null where there is nothing to count.
    """
    done = [(question, record) for question, record in pairs if is_answered(record)]
    scores = np.array([_score(record, rule) for _, record in done])
    unanswerable = np.array([question.gold is None for question, _ in done], dtype=bool)
    told_apart = any(record["answer"] is not None or record.get("speaker_gap") is not None for _, record in done)
    found = separation(scores[unanswerable & told_apart], scores[~unanswerable])
    answered = [(question, record) for question, record in done if record["answer"] is not None]
    if not answered:
        return found
    wrong = [
        1.0 - question.score(record.get("said") or record["answer"], record["form"]) for question, record in answered
    ]
    order = np.argsort(scores, kind="stable")
    risks = np.cumsum(np.array(wrong)[order]) / np.arange(1, len(wrong) + 1)
    own = [abstains(record["answer"]) for question, record in answered if question.answerable]
    twins = [_twin_is_right(*twin) for twin in _twins(answered)]
    return found | {
        "risk_coverage": [[(i + 1) / len(risks), float(risks[i])] for i in _points(len(risks))],
        "risk_coverage_auc": float(risks.mean()),
        "twin_accuracy": sum(twins) / len(twins) if twins else None,
        "twins": len(twins),
        "over_abstention": sum(own) / len(own) if own else None,
        "over_abstention_n": len(own),
    }


def separation(unanswerable: np.ndarray, answerable: np.ndarray) -> Results:
    """AUC of scores that should be higher for the unanswerable, ties counting half, and the share of them above the
    threshold that 5 % (10 %) of the answerable pass. Null where one side is empty."""
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
    """The lowest score that at most this share of the answerable questions lies above."""
    return float(np.quantile(answerable, 1 - false_abstention, method="higher"))


def _score(record: Record, rule: AbstentionRule | None) -> float:
    signals = signals_of(record)
    if rule:
        return rule.score(signals)
    if record.get("abstention_score") is not None:
        return float(record["abstention_score"])
    # A gap is a few standard deviations at most; a question that names nobody was hardly ever swapped.
    return 100.0 * signals.absent + (-50.0 if signals.speaker_gap is None else signals.speaker_gap)


def _points(n: int, *, most: int = 100) -> list[int]:
    return sorted({round((i + 1) * n / min(n, most)) - 1 for i in range(min(n, most))})


def _twins(pairs: Pairs) -> Iterable[tuple[tuple[Question, Record], tuple[Question, Record]]]:
    """Pairs of an answerable question and an unanswerable variation of it, asked freely, about exactly the same
    evidence."""
    swapped: dict[tuple[str, frozenset[str]], list[tuple[Question, Record]]] = {}
    for question, record in pairs:
        if not question.answerable and question.evidence and record["form"] == "free":
            swapped.setdefault((question.conversation, frozenset(question.evidence)), []).append((question, record))
    for question, record in pairs:
        if question.has_twins:
            for twin in swapped.get((question.conversation, frozenset(question.evidence)), ()):
                yield (question, record), twin


def _twin_is_right(single: tuple[Question, Record], swapped: tuple[Question, Record]) -> bool:
    question, record = single
    return question.score(record["answer"]) >= RIGHT_FROM and abstains(swapped[1]["answer"])


def risk_at(found: Results, coverage: float) -> float | None:
    """The risk at the point of the curve nearest to a coverage."""
    points = found.get("risk_coverage")
    return min(points, key=lambda point: abs(point[0] - coverage))[1] if points else None


def fit(pairs: Pairs, *, false_abstention: float = 0.05) -> AbstentionRule:
    """Logistic weights (L2, balanced classes) that separate unanswerable questions, and the threshold that
    `false_abstention` of the answerable questions pass. Raises ValueError without questions of both kinds."""
    from scipy.optimize import minimize

    signals = [signals_of(record).vector() for _, record in pairs if is_answered(record)]
    y = np.array([float(question.gold is None) for question, record in pairs if is_answered(record)])
    if not 0 < y.sum() < len(y):
        raise ValueError("a rule needs answerable and unanswerable questions to be fitted on.")
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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="memometer fit-abstention", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, help="a finished run over the validation conversations")
    parser.add_argument("--system", default="adaptive")
    parser.add_argument("--false-abstention", type=float, default=0.05, metavar="SHARE")
    parser.add_argument("--out", type=Path, default=Path("abstention.json"), metavar="FILE")
    args = parser.parse_args(argv)
    try:
        with RunFolder.reopen(args.run) as folder:
            config, records = asked_of(folder.manifest, args.run), folder.records()
        data = benchmarks.load(config.get("benchmark")).load(config.get("data"))
        split = config["split"].rpartition(":")[0] or "default"
        asked = {q.id: q for conversation in data.part(f"{split}:validation") for q in conversation.questions}
        found = [
            (asked[record["question_id"]], record)
            for record in latest(records).values()
            if record["system"] == args.system
            and record["question_id"] in asked
            and is_answered(record)
            and not failed(record)
        ]
        rule = fit(found, false_abstention=args.false_abstention)
        if not data.kind:  # a stand-in's figures prove nothing anyway
            rule = replace(rule, fitted_on=tuple(dict.fromkeys(question.conversation for question, _ in found)))
    except (DataError, RunFolderError, ValueError) as error:
        print(f"memometer.stats.abstention: {error}", file=sys.stderr)
        return 1
    rule.save(args.out)
    told = figures(found, rule)
    for line in (
        *(f"{name}: {weight:+.4f}" for name, weight in rule.weights.items()),
        f"abstains above {rule.threshold:+.4f}, as {args.false_abstention:.0%} of the answerable questions would",
        f"on these {len(found)} questions: AUC {told['auc']:.3f}, caught {told['caught_at_5']:.1%} at 5 %",
        f"written to {args.out}",
    ):
        print(f"{data.prefix}{line}")
    return 0
