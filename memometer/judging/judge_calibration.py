"""Judge calibration: how often a judge accepts wrong answers and rejects right ones, measured before it grades.

The answers come from `memometer.judging.calibration_set`. A calibration is cached per model, prompt and data, is part
of every report, and decides whether judge accuracy is shown at all.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from memometer.errors import UserError
from memometer.judging.calibration_set import RIGHT, SEED, WRONG, CalibrationAnswer
from memometer.judging.judge import Judge, Label, Verdict
from memometer.models.downloads import models_folder
from memometer.models.errors import EarlyStop
from memometer.run.environment import digest
from memometer.stats.intervals import clustered_mean, wilson
from memometer.stats.number_format import percent, rate

Calibration = dict[str, Any]
"""A calibration as JSON.

Keys: judge, prompt, prompt_hash, date (UTC), per_set, false_accept and false_reject ({rate, low, high, n}), sets
({name: the same with missing, clustered and kinds}), missing, stability, parser, usage (cost of the calls).
"""

PER_SET = 25
REPEATS = 3
REPEATED_ANSWERS = 20
"""Number of answers that are graded REPEATS times."""

MAX_FALSE_ACCEPT = 0.15
"""Limit for the upper end of the interval, because false accepts raise every score and a few lucky answers prove
nothing. The lenient prompt behind most published scores accepts 11 % of specific wrong answers and 63 % of vague ones.
At 15 %, a judge reports 57 % if half of the answers are right."""
MAX_FALSE_REJECT = 0.15
MAX_GOLD_REJECTED = 0.02
"""Limits for the measured rates: false rejects lower the scores, and nobody benefits from luck."""
MAX_MISSING = 0.02

MAX_AGE = timedelta(days=30)
"""For a model that is served under a name, whose weights may change. A file of weights is identified by its bytes and
its calibration does not expire."""


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
) -> Calibration:
    """Grade every answer of the calibration set, and REPEATED_ANSWERS of them several times.

    Args:
        judge: The judge. It does not cache, so every call reaches the model.
        sets: Name of a set -> its answers.
        repeats: Times that the repeated answers are graded.
        num_threads: Concurrent calls.
        stop: Ends the measurement once it is set.
        progress: Called after each call.

    Returns:
        The calibration.

    Raises:
        CalibrationError: More than MAX_MISSING of the calls failed, or `stop` was set.
        Exception: Errors that every further call would raise too, such as a rejected key.
    """
    stop, abandoned = stop or threading.Event(), threading.Event()
    answers = [answer for drawn in sets.values() for answer in drawn]
    repeated = random.Random(SEED).sample(answers, min(REPEATED_ANSWERS, len(answers)))
    asked = [*answers, *(answer for answer in repeated for _ in range(repeats - 1))]
    failures: list[str] = []  # the error of each finished call, empty for a success
    early = EarlyStop()
    verdicts: list[Verdict] = []
    started = time.perf_counter()

    def grade(item: CalibrationAnswer) -> Label | None:
        if stop.is_set() or abandoned.is_set():
            return None
        verdict = judge(item.question.text, item.question.gold or "", item.answer, of=item.question)
        verdicts.append(verdict)
        failures.append(verdict.failure)
        if early.add(verdict.failure):
            abandoned.set()
        progress()
        return verdict.label

    with ThreadPoolExecutor(num_threads) as pool:
        pending = [pool.submit(grade, answer) for answer in asked]
        try:
            labels = [future.result() for future in pending]
        except BaseException:  # a rejected key or Ctrl-C; re-raised
            abandoned.set()  # otherwise the pool would make all pending calls before it ends
            raise
    failed = [failure for failure in failures if failure]
    if len(failed) > MAX_MISSING * len(asked) or (failed and abandoned.is_set()):
        raise CalibrationError(
            f"{len(failed)} of {len(failures)} calls to the judge failed, the last with {failed[-1]}"
        )
    graded = [label for label in labels if label is not None]
    if len(graded) < len(asked):
        raise CalibrationError("the measurement was stopped")
    return {
        "judge": judge.lm.model,
        "prompt": judge.prompt,
        "prompt_hash": judge.prompt_hash,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        **_errors(answers, graded[: len(answers)]),
        "stability": _stability(answers, repeated, graded, repeats),
        "parser": check_parser(judge.parse),
        "usage": {
            "calls": len(verdicts),
            "unreported": sum(verdict.unreported for verdict in verdicts),
            "prompt_tokens": sum(verdict.prompt_tokens for verdict in verdicts),
            "completion_tokens": sum(verdict.completion_tokens for verdict in verdicts),
            "seconds": round(time.perf_counter() - started, 4),
        },
    }


def _errors(answers: Sequence[CalibrationAnswer], labels: Sequence[Label]) -> Calibration:
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
    answers: Sequence[CalibrationAnswer], repeated: Sequence[CalibrationAnswer], labels: Sequence[Label], repeats: int
) -> Calibration:
    """The share of the repeated answers whose label differs in any repeat; a missing label differs from any other."""
    first = {(answer.set, answer.question.id): label for answer, label in zip(answers, labels, strict=False)}
    later = labels[len(answers) :]
    flipped = sum(
        any(
            label != first[answer.set, answer.question.id]
            for label in later[i * (repeats - 1) : (i + 1) * (repeats - 1)]
        )
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


# ---------------------------------------------------------------- assessment


def assess(calibration: Calibration, *, max_false_accept: float = MAX_FALSE_ACCEPT) -> Calibration:
    """Decide whether a judge passed.

    Args:
        calibration: The measurement.
        max_false_accept: Limit for the upper end of the false-accept rate.

    Returns:
        The calibration with `passed` and, if it is false, the `reasons` as clauses.
    """
    accept, reject, gold = calibration["false_accept"], calibration["false_reject"], calibration["sets"]["gold"]
    reasons = []
    if failed := calibration["parser"]["failed"]:
        reasons.append(f"its parser misreads {', '.join(map(repr, failed))}")
    if calibration["missing"] > MAX_MISSING:
        reasons.append(f"{percent(calibration['missing'])} % of its replies are not a label (limit {MAX_MISSING:.0%})")
    if accept["rate"] is None or reject["rate"] is None:
        return {**calibration, "passed": False, "reasons": reasons or ["it graded nothing"]}
    if accept["high"] > max_false_accept:
        reasons.append(
            f"it accepts {error_rate(accept)} of wrong answers (limit {max_false_accept:.0%} for the upper end)"
        )
    if gold["rate"] is None or gold["rate"] > MAX_GOLD_REJECTED:
        reasons.append(f"it rejects {error_rate(gold)} of the gold answers (limit {MAX_GOLD_REJECTED:.0%})")
    if reject["rate"] > MAX_FALSE_REJECT:
        reasons.append(f"it rejects {error_rate(reject)} of right answers (limit {MAX_FALSE_REJECT:.0%})")
    return {**calibration, "passed": not reasons, "reasons": reasons}


def error_rate(found: Mapping[str, Any]) -> str:
    """Format an error rate with its interval: `6.2 [3.1, 12.0] %`."""
    return f"{rate(found['rate'], found['low'], found['high'])} %"


def sentence(calibration: Calibration) -> str:
    """Summarize an assessed calibration in one sentence."""
    name = f"{calibration['judge']} ({calibration['prompt']})"
    if calibration["passed"]:
        return (
            f"{name} passed its calibration ({calibration['date'][:10]}): it accepts "
            f"{error_rate(calibration['false_accept'])} of wrong answers and rejects "
            f"{error_rate(calibration['false_reject'])} of right ones."
        )
    return f"{name} failed its calibration ({calibration['date'][:10]}): {'; '.join(calibration['reasons'])}."


def notes(calibration: Calibration) -> str:
    """Describe the parser test, the stability and a missing set, a line each."""
    parser, stability = calibration["parser"], calibration["stability"]
    lines = [f"Parser: {parser['cases'] - len(parser['failed'])} of {parser['cases']} test replies read correctly."]
    if stability["n"]:
        lines.append(
            f"Stability: {stability['flipped']} of {stability['n']} labels differ in {stability['repeats']} repeats."
        )
    if "specific_wrong" not in calibration["sets"]:
        lines.append("Specific wrong answers were not measured; give them with --wrong-answers FILE.")
    return "\n".join(lines)


# ---------------------------------------------------------------- cache


def identify(
    judge: Judge, *, revision: str, address: str | None, data: str, wrong_answers: Path | None
) -> dict[str, str]:
    """Describe what must be the same for a cached calibration to be valid.

    Args:
        judge: The judge.
        revision: Revision of the weights; empty for a model that is served under a name.
        address: The API base, because a server may give any model that name.
        data: SHA-256 of the data.
        wrong_answers: The file of specific wrong answers, or None.

    Returns:
        Name -> value.
    """
    return {
        "judge": judge.lm.model,
        "prompt": judge.prompt,
        "prompt_hash": judge.prompt_hash,
        "revision": revision,
        "address": address or "",
        "data": data,
        "wrong_answers": hashlib.sha256(wrong_answers.read_bytes()).hexdigest() if wrong_answers else "",
        "calibration_set": hashlib.sha256(Path(__file__).with_name("calibration_set.py").read_bytes()).hexdigest()[:16],
    }


def _path(identity: Mapping[str, str]) -> Path:
    slug = re.sub(r"[^\w.-]+", "_", f"{identity['judge']}-{identity['prompt']}")[-80:]
    return models_folder() / "judge_calibrations" / f"{slug}-{digest({**identity, 'wrong_answers': ''})}.json"


def cached(identity: Mapping[str, str], *, per_set: int = 0, now: datetime | None = None) -> Calibration | None:
    """Read a calibration from the cache.

    A calibration with specific wrong answers is also valid if none are given.

    Args:
        identity: As `identify` returns it.
        per_set: Minimum number of answers per set.
        now: The current time; None for the system's.

    Returns:
        The calibration; None if there is none, or it is too small, expired or damaged.
    """
    path = _path(identity)
    if not path.exists():  # versions before 0.2
        path = path.parents[1] / "certificates" / path.name
    try:
        found = _upgraded(json.loads(path.read_bytes()))
        age = (now or datetime.now(UTC)) - datetime.fromisoformat(found["date"])
        wrong_answers = identity["wrong_answers"] or found["identity"]["wrong_answers"]
        expired = age > MAX_AGE and not identity["revision"]
        if found["identity"] != {**identity, "wrong_answers": wrong_answers} or found["per_set"] < per_set or expired:
            return None
        return dict(found)
    except (OSError, ValueError, KeyError, TypeError):  # absent or damaged: measure again
        return None


def _upgraded(value: Any) -> Any:
    """Rename the field `ungraded` of earlier versions."""
    if not isinstance(value, dict):
        return value
    return {"missing" if name == "ungraded" else name: _upgraded(of) for name, of in value.items()}


def cache(calibration: Calibration, identity: Mapping[str, str], *, per_set: int) -> Calibration:
    """Write a calibration to the cache, atomically.

    Args:
        calibration: The measurement.
        identity: As `identify` returns it.
        per_set: Answers per set that were drawn.

    Returns:
        The calibration with `per_set` and `identity`.

    Raises:
        OSError: The cache cannot be written.
    """
    whole = {**calibration, "per_set": per_set, "identity": dict(identity)}
    path = _path(identity)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(whole, indent=1) + "\n")
    part.replace(path)
    return whole
