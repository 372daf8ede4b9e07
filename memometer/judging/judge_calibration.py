"""Judge calibration: how often a judge accepts wrong answers and rejects right ones, measured before it grades.

The answers come from `memometer.judging.calibration_set`. `judge_assessment` decides from a calibration whether judge
accuracy is shown at all, and `calibration_cache` keeps it.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Any

from memometer.errors import UserError
from memometer.judging.answer_rules import LEXICAL, lexical_label
from memometer.judging.calibration_set import RIGHT, SEED, WRONG, CalibrationAnswer
from memometer.judging.judge import Judge, Label, Verdict
from memometer.models.errors import EarlyStop
from memometer.stats.intervals import clustered_mean, wilson

Calibration = dict[str, Any]
"""A calibration as JSON.

Keys: judge, prompt, prompt_hash, date (UTC), per_set, false_accept and false_reject ({rate, low, high, n}), sets
({name: the same with missing, clustered and kinds}), lexical (the sets under the lexical judge), labels ([set, kind,
question id, label] of each answer), by_rule (rule -> answers), planned (set -> answers), missing, stability, parser,
usage (cost of the calls), ended_early (True if a set could not pass any more).
"""

PER_SET = 60
"""Answers per set: with so many, three errors in a set leave the upper limit below 15 %."""
REPEATS = 3
REPEATED_ANSWERS = 20
"""Number of answers that are graded REPEATS times."""

MAX_MISSING = 0.02


class CalibrationError(UserError):
    """The judge cannot be measured."""


# ---------------------------------------------------------------- measuring


def measure(
    judge: Judge,
    sets: Mapping[str, Sequence[CalibrationAnswer]],
    *,
    repeats: int = REPEATS,
    num_threads: int = 4,
    stop: threading.Event | None = None,
    progress: Callable[[], object] = lambda: None,
    end_at: Callable[[int, int], bool] | None = None,
) -> Calibration:
    """Grade every answer of the calibration set, and REPEATED_ANSWERS of them several times.

    Args:
        judge: The judge. It does not cache, so every call reaches the model.
        sets: Name of a set -> its answers.
        repeats: Times that the repeated answers are graded.
        num_threads: Concurrent calls.
        stop: Ends the measurement once it is set.
        progress: Called after each call.
        end_at: (false accepts in a set, its answers) -> True to end the measurement, because the set cannot pass any
            more. None measures everything.

    Returns:
        The calibration.

    Raises:
        CalibrationError: More than MAX_MISSING of the calls failed, or `stop` was set.
        Exception: Errors that every further call would raise too, such as a rejected key.
    """
    stop, abandoned, decided = stop or threading.Event(), threading.Event(), threading.Event()
    # The sets take turns, so that a bad judge is found out early.
    rows = zip_longest(*sets.values())
    answers = [answer for row in rows for answer in row if answer is not None]
    repeated = random.Random(SEED).sample(answers, min(REPEATED_ANSWERS, len(answers)))
    asked = [*answers, *(answer for answer in repeated for _ in range(repeats - 1))]
    failures: list[str] = []  # the error of each finished call, empty for a success
    early = EarlyStop()
    verdicts: list[Verdict] = []
    false_accepts = Counter[str]()
    started = time.perf_counter()

    def grade(number: int, item: CalibrationAnswer) -> Label | None:
        if stop.is_set() or abandoned.is_set() or decided.is_set():
            return None
        verdict = judge(item.question.text, item.question.gold or "", item.answer, of=item.question)
        verdicts.append(verdict)
        if not verdict.rule:  # which is not a call, and says nothing about the judge
            failures.append(verdict.failure)
            if early.add(verdict.failure):
                abandoned.set()
        if number < len(answers) and item.set in WRONG and verdict.label == "correct":
            false_accepts[item.set] += 1
            if end_at and end_at(false_accepts[item.set], len(sets[item.set])):
                decided.set()
        progress()
        return verdict.label

    with ThreadPoolExecutor(num_threads) as pool:
        pending = [pool.submit(grade, number, answer) for number, answer in enumerate(asked)]
        try:
            labels = [future.result() for future in pending]
        except BaseException:  # a rejected key or Ctrl-C; re-raised
            abandoned.set()  # otherwise the pool would make all pending calls before it ends
            raise
    failed = [failure for failure in failures if failure]
    if len(failed) > MAX_MISSING * len(failures) or (failed and abandoned.is_set()):
        raise CalibrationError(
            f"{len(failed)} of {len(failures)} calls to the judge failed, the last with {failed[-1]}"
        )
    if stop.is_set() or (None in labels and not decided.is_set()):
        raise CalibrationError("the measurement was stopped")
    graded = [(answer, label) for answer, label in zip(answers, labels, strict=False) if label is not None]
    by_rule = Counter(verdict.rule for verdict in verdicts if verdict.rule)
    return {
        "judge": judge.lm.model,
        "prompt": judge.prompt,
        "prompt_hash": judge.prompt_hash,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        **error_rates([answer for answer, _ in graded], [label for _, label in graded]),
        LEXICAL: _lexical(answers),
        "labels": [[answer.set, answer.kind, answer.question.id, label] for answer, label in graded],
        "by_rule": dict(by_rule),
        "planned": {name: len(drawn) for name, drawn in sets.items()},
        "ended_early": decided.is_set(),
        "stability": _stability(answers, repeated, labels, 1 if decided.is_set() else repeats),
        "parser": check_parser(judge.parse),
        "usage": {
            "calls": sum(not verdict.rule for verdict in verdicts),
            "unreported": sum(verdict.unreported for verdict in verdicts),
            "prompt_tokens": sum(verdict.prompt_tokens for verdict in verdicts),
            "completion_tokens": sum(verdict.completion_tokens for verdict in verdicts),
            "seconds": round(time.perf_counter() - started, 4),
        },
    }


def _lexical(answers: Sequence[CalibrationAnswer]) -> dict[str, Any]:
    """The error rates of the lexical judge, by set."""
    labels = [lexical_label(answer.question.gold or "", answer.answer) for answer in answers]
    sets: dict[str, Any] = error_rates(answers, labels)["sets"]
    return sets


def error_rates(answers: Sequence[CalibrationAnswer], labels: Sequence[Label]) -> Calibration:
    """Compute false accepts and false rejects from the labels of answers of known correctness.

    Args:
        answers: The answers, shape (n,).
        labels: Their labels, shape (n,).

    Returns:
        `false_accept` and `false_reject`, the means over the sets; `sets`; and `missing`, the share of missing labels.
    """
    by_set: dict[str, list[tuple[CalibrationAnswer, Label]]] = defaultdict(list)
    for answer, label in zip(answers, labels, strict=True):
        by_set[answer.set].append((answer, label))
    sets = {name: _set_errors(graded) for name, graded in by_set.items()}
    return {
        "false_accept": macro_rate([sets[name] for name in WRONG if name in sets]),
        "false_reject": macro_rate([sets[name] for name in RIGHT if name in sets]),
        "missing": sum(label == "missing" for label in labels) / len(labels) if labels else 0.0,
        "sets": sets,
    }


def _set_errors(graded: Sequence[tuple[CalibrationAnswer, Label]]) -> Calibration:
    """The rate of wrong labels among the graded answers of one set, 0 to 1."""
    errors = [(answer, float(label != answer.label)) for answer, label in graded if label != "missing"]
    kinds: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for answer, error in errors:
        kinds[answer.kind][0] += int(error)
        kinds[answer.kind][1] += 1
    found = clustered_mean([error for _, error in errors], [answer.question.conversation for answer, _ in errors])
    low, high = wilson(found.mean, found.n) if found.mean is not None else (None, None)
    return {
        "rate": found.mean,
        "low": low,
        "high": high,
        "n": found.n,
        "missing": len(graded) - len(errors),
        "clustered": None if found.low is None else [found.low, found.high],
        "kinds": dict(kinds),
    }


def macro_rate(sets: Sequence[Mapping[str, Any]]) -> Calibration:
    """Average the error rates of independent sets with equal weight, with a 95 % interval.

    The interval combines Wilson's interval of each set, which is also valid at 0 errors.

    Source: method of variance estimates recovery, Zou and Donner, Statistics in Medicine 27, 2008.

    Args:
        sets: `rate`, `low`, `high` and `n` of each set; sets without a rate are left out.

    Returns:
        `rate`, `low`, `high` and `n`; None if no set has a rate.
    """
    found = [entry for entry in sets if entry["rate"] is not None]
    if not found:
        return {"rate": None, "low": None, "high": None, "n": 0}
    k = len(found)
    mean = sum(entry["rate"] for entry in found) / k
    down = math.sqrt(sum((entry["rate"] - entry["low"]) ** 2 for entry in found)) / k
    up = math.sqrt(sum((entry["high"] - entry["rate"]) ** 2 for entry in found)) / k
    n = sum(entry["n"] for entry in found)
    return {"rate": mean, "low": max(0.0, mean - down), "high": min(1.0, mean + up), "n": n}


def _stability(
    answers: Sequence[CalibrationAnswer],
    repeated: Sequence[CalibrationAnswer],
    labels: Sequence[Label | None],
    repeats: int,
) -> Calibration:
    """The share of the repeated answers whose label differs in any repeat; a missing label differs from any other."""
    first = {id(answer): label for answer, label in zip(answers, labels, strict=False)}
    later = labels[len(answers) :]
    flipped = sum(
        any(label != first[id(answer)] for label in later[i * (repeats - 1) : (i + 1) * (repeats - 1)])
        for i, answer in enumerate(repeated)
    )
    n = len(repeated) if repeats > 1 else 0
    low, high = wilson(flipped / n, n) if n else (None, None)
    return {
        "repeats": repeats,
        "n": n,
        "flipped": flipped,
        "rate": flipped / n if n else None,
        "low": low,
        "high": high,
    }


BAD_REPLIES = (
    "INCORRECT", "CORRECT", "The answer is correct.", "yes and no", "yes or no", "", " ", "No, wait. Yes", "n",
    '{"label": "CORRECT"}', '{"verdict": "yes"}', "yes, but the date differs", "True", "1", "0.9", "not yes",
    "The generated answer touches on the same topic, so yes", "Reason: no date. Verdict: yes", "yes\n\nno", "unsure",
)  # fmt: skip
"""Replies that are not a label, observed or likely. Published harnesses read some of them as one."""


def check_parser(parse: Callable[[str], Label]) -> Calibration:
    """Test a label parser on replies of known meaning.

    Args:
        parse: Returns the label of a reply.

    Returns:
        `cases`, their number, and `failed`, the replies that were read wrongly.
    """
    cases: dict[str, Label] = dict.fromkeys(BAD_REPLIES, "missing")
    cases |= {"yes": "correct", "No.": "wrong", " **Yes** ": "correct"}
    return {"cases": len(cases), "failed": [reply for reply, label in cases.items() if parse(reply) != label]}
