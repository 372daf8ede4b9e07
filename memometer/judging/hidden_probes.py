"""Hidden probes: answers of known correctness that are mixed into the grading of a run.

A calibration is of another day. The probes show how the judge errs in this run, on its own questions. They are graded
by the same calls as answers, in an order that the seed of the run draws, and a judge cannot tell them apart.
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from memometer.benchmarks.protocol import Conversation, Question
from memometer.judging.answer_rules import broken_rule
from memometer.judging.calibration_set import WRONG, CalibrationAnswer, makers
from memometer.judging.graders import Grader
from memometer.judging.judge import Judge, Verdict
from memometer.judging.judge_assessment import MAX_FALSE_ACCEPT, MAX_FALSE_REJECT, SET_NAMES, error_rate
from memometer.models.errors import FATAL, describe
from memometer.run.folder import Record, RunFolder
from memometer.stats.intervals import wilson

WRONG_PROBES = 60
"""Wrong answers in each run. With fewer, the run prints that the probes were not checked."""
RIGHT_PROBES = 20
MOST_OF_A_SET = 60
MOST_QUESTIONS = 150
"""Questions from which the answers of one set are made."""

ProbeResult = dict[str, Any]
"""Keys: grader, passed, checked (enough wrong answers were graded), false_accept and false_reject ({rate, low, high,
n}), sets ({name: [false labels, n]}), sentence."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A probe: its number in the run, and its answer."""

    number: int
    answer: CalibrationAnswer


def draw_probes(questions: Sequence[Question], conversations: Sequence[Conversation], *, seed: int) -> list[Probe]:
    """Draw the probes of a run from its own questions.

    Answers that a rule calls wrong are left out, because the judge would not see them.

    Args:
        questions: The questions of the run.
        conversations: Their conversations.
        seed: The seed of the run.

    Returns:
        At most WRONG_PROBES wrong and RIGHT_PROBES right answers, in random order; empty without gold answers.
    """
    generator = random.Random(f"probes/{seed}")
    golds = [question for question in questions if question.gold is not None]
    pools = {
        name: _visible(name, make, generator.sample(golds, min(len(golds), MOST_QUESTIONS)), generator)
        for name, make in makers(conversations, golds).items()
    }
    wrong = _in_turns([pool for name, pool in pools.items() if name in WRONG], WRONG_PROBES)
    right = _in_turns([pool for name, pool in pools.items() if name not in WRONG], RIGHT_PROBES)
    drawn = [*wrong, *right]
    return [Probe(number, answer) for number, answer in enumerate(generator.sample(drawn, len(drawn)))]


def _visible(
    name: str, make: Callable[[Question], Mapping[str, str]], questions: Sequence[Question], generator: random.Random
) -> list[CalibrationAnswer]:
    """Make up to MOST_OF_A_SET answers of a set that no rule decides: one of each question, then further kinds."""
    found: list[CalibrationAnswer] = []
    further: list[CalibrationAnswer] = []
    for question in questions:
        if len(found) == MOST_OF_A_SET:
            return found
        made = [CalibrationAnswer(name, kind, question, text) for kind, text in make(question).items()]
        made = [one for one in made if not broken_rule(question.text, question.gold or "", one.answer)]
        mixed = generator.sample(made, len(made))
        found += mixed[:1]
        further += mixed[1:]
    return [*found, *further][:MOST_OF_A_SET]


def _in_turns(pools: Sequence[list[CalibrationAnswer]], n: int) -> list[CalibrationAnswer]:
    """Take n answers from pools that take turns, until all are empty."""
    found: list[CalibrationAnswer] = []
    for position in range(max(map(len, pools), default=0)):
        found += [pool[position] for pool in pools if position < len(pool)]
    return found[:n]


class ProbeQueue:
    """The probes that a run still has to grade, and the places between its verdicts at which they are due.

    Args:
        probes: The probes that are left.
        verdicts: The number of verdicts to come.
        seed: The seed of the run.
    """

    def __init__(self, probes: Sequence[Probe], *, verdicts: int, seed: int) -> None:
        generator = random.Random(f"places/{seed}")
        places = sorted(generator.randrange(max(1, verdicts)) for _ in probes)
        self._left = list(zip(places, probes, strict=True))
        self._verdicts = 0
        self._lock = threading.Lock()

    def after_verdict(self) -> list[Probe]:
        """Return the probes that are due after one more verdict. Several threads may call this at once."""
        with self._lock:
            self._verdicts += 1
            due = [probe for place, probe in self._left if place < self._verdicts]
            self._left = self._left[len(due) :]
            return due

    def rest(self) -> list[Probe]:
        """Return the probes that were not due yet."""
        with self._lock:
            rest, self._left = [probe for _, probe in self._left], []
            return rest


def probe_line(probe: Probe, verdict: Record) -> Record:
    """Build a line of probes.jsonl."""
    answer = probe.answer
    return {
        "probe": probe.number,
        "set": answer.set,
        "kind": answer.kind,
        "question_id": answer.question.id,
        "answer": answer.answer,
        "expected": answer.label,
        "verdict": verdict,
    }


class Prober:
    """Grades the probes of a run while its answers are graded.

    Args:
        judge: The judge of the run.
        folder: The run folder; probes that it has already are not repeated.
        probes: All probes of the run.
        verdicts: The number of verdicts to come.
        seed: The seed of the run.
    """

    def __init__(self, judge: Judge, folder: RunFolder, probes: Sequence[Probe], *, verdicts: int, seed: int) -> None:
        done = graded_probes(folder.probes(), judge)
        self._judge, self._folder = judge, folder
        self._queue = ProbeQueue([p for p in probes if p.number not in done], verdicts=verdicts, seed=seed)

    def after_verdict(self) -> None:
        """Grade the probes that are due after one more verdict."""
        for probe in self._queue.after_verdict():
            self._grade(probe)

    def finish(self, *, num_threads: int, stop: threading.Event) -> None:
        """Grade the probes that are left, unless `stop` is set.

        Raises:
            OSError: The folder cannot be written.
        """

        def grade(probe: Probe) -> None:
            if not stop.is_set():
                self._grade(probe)

        with ThreadPoolExecutor(num_threads) as pool:
            for future in [pool.submit(grade, probe) for probe in self._queue.rest()]:
                future.result()

    def _grade(self, probe: Probe) -> None:
        answer, started = probe.answer, time.perf_counter()
        try:
            verdict = self._judge(answer.question.text, answer.question.gold or "", answer.answer, of=answer.question)
        except FATAL as error:  # the next answer meets the same error, and ends the run
            verdict = Verdict("missing", reason=describe(error))
        line = {**self._judge.record(verdict), "seconds": round(time.perf_counter() - started, 4)}
        self._folder.append_probe(probe_line(probe, line))


def graded_probes(lines: Iterable[Record], judge: Judge) -> set[int]:
    """Return the numbers of the probes that have a label from a judge."""
    return {
        line["probe"]
        for line in lines
        if line["verdict"]["label"] != "missing"
        and (line["verdict"]["judge"], line["verdict"]["prompt_hash"]) == (judge.lm.model, judge.prompt_hash)
    }


def assess_probes(
    lines: Iterable[Record], graders: Sequence[Grader], *, max_false_accept: float = MAX_FALSE_ACCEPT
) -> list[ProbeResult]:
    """Compute how a run's graders erred on its hidden probes.

    Args:
        lines: The lines of probes.jsonl. Only the first label of each probe counts.
        graders: The graders of the run.
        max_false_accept: Limit for the upper end of the false-accept rate.

    Returns:
        One result for each grader that graded probes. It is not passed if the upper limit of its false-accept rate or
        its false-reject rate exceeds the limit, or, with fewer than WRONG_PROBES labels, if the rate itself does.
    """
    labels: dict[tuple[str, str], dict[int, Record]] = defaultdict(dict)
    for line in lines:
        verdict = line["verdict"]
        if verdict["label"] != "missing":
            labels[verdict["judge"], verdict["prompt"]].setdefault(line["probe"], line)
    results = []
    for grader in graders:
        graded = list(labels.get((grader.judge, grader.prompt), {}).values())
        if not graded:
            continue
        accept = _rate([line for line in graded if line["expected"] == "wrong"])
        reject = _rate([line for line in graded if line["expected"] == "correct"])
        checked = accept["n"] >= WRONG_PROBES
        too_high = accept["n"] and accept["high" if checked else "rate"] > max_false_accept
        failed = bool(too_high) or bool(reject["n"] and reject["rate"] > MAX_FALSE_REJECT)
        sets: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for line in graded:
            sets[line["set"]][0] += line["verdict"]["label"] != line["expected"]
            sets[line["set"]][1] += 1
        found = {"false_accept": accept, "false_reject": reject, "sets": dict(sets), "checked": checked}
        results.append(
            {"grader": grader.name, "passed": not failed, **found, "sentence": _sentence(grader, found, failed)}
        )
    return results


def _rate(lines: Sequence[Record]) -> dict[str, Any]:
    n = len(lines)
    if not n:
        return {"rate": None, "low": None, "high": None, "n": 0}
    rate = sum(line["verdict"]["label"] != line["expected"] for line in lines) / n
    low, high = wilson(rate, n)
    return {"rate": rate, "low": low, "high": high, "n": n}


def _sentence(grader: Grader, found: ProbeResult, failed: bool) -> str:
    accept, reject = found["false_accept"], found["false_reject"]
    parts = [f"accepted {error_rate(accept)} of {accept['n']} wrong answers"] if accept["n"] else []
    parts += [f"rejected {error_rate(reject)} of {reject['n']} right ones"] if reject["n"] else []
    errors = {name: of for name, of in found["sets"].items() if of[0]}
    listed = ", ".join(f"{SET_NAMES.get(name, name)} {wrong}/{n}" for name, (wrong, n) in errors.items())
    text = f"on the hidden probes of this run, {grader.name} {' and '.join(parts)}" + (f" ({listed})" if listed else "")
    if failed:
        return f"{text[:1].upper()}{text[1:]}; that is over the limit."
    if not found["checked"]:
        return f"Not checked: {text}; {WRONG_PROBES} wrong answers are needed."
    return f"{text[:1].upper()}{text[1:]}."
