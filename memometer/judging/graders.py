"""Graders of a run, the scores of their verdicts, and further verdicts on stored answers."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from memometer.benchmarks.protocol import Dataset, Question
from memometer.judging.judge import Judge
from memometer.models.errors import FATAL, EarlyStop, describe
from memometer.run.folder import Record, RunFolder, RunFolderError, failed, is_answered, key, latest

Rule = Literal["mean", "majority"]
"""How repeated verdicts on one answer are combined."""


@dataclass(frozen=True, slots=True)
class Grader:
    """A judge model, its prompt and the label set it graded against. Scores of two graders are not comparable."""

    judge: str
    prompt: str
    label_set: str = "original"

    @property
    def name(self) -> str:
        """The grader as reports print it."""
        return f"{self.judge} ({self.prompt}, {self.label_set})"


def grader_of(verdict: Mapping[str, Any]) -> Grader:
    """Return the grader that gave a verdict."""
    return Grader(verdict["judge"], verdict["prompt"], verdict.get("label_set", "original"))


def graders_of(records: Iterable[Record]) -> list[Grader]:
    """List the graders of some records in order of appearance; the first is the run's own."""
    return list(dict.fromkeys(grader_of(verdict) for record in records for verdict in record["verdicts"]))


def prompt_hashes(records: Iterable[Record], grader: Grader) -> set[str]:
    """Collect the hashes of the judge prompts under which a grader gave its verdicts; "" for imported verdicts."""
    verdicts = (verdict for record in records for verdict in record["verdicts"] if grader_of(verdict) == grader)
    return {verdict.get("prompt_hash") or "" for verdict in verdicts}


def score(record: Record, grader: Grader, *, rule: Rule = "mean") -> float | None:
    """Score an answer by the verdicts of one grader.

    Only the first label of each repeat counts, so grading again cannot improve a score.

    Args:
        record: The record of the answer.
        grader: The grader.
        rule: Mean of the repeats, or 1.0 if more than half of them are correct.

    Returns:
        The score in [0, 1]; 0.0 if the memory system failed; None if the answer or every label is missing.
    """
    if failed(record):
        return 0.0
    if not is_answered(record):
        return None
    labels: dict[int, float] = {}
    for verdict in record["verdicts"]:
        if grader_of(verdict) == grader and verdict["label"] != "missing":
            labels.setdefault(verdict.get("repeat", 0), verdict.get("score", float(verdict["label"] == "correct")))
    if not labels:
        return None
    mean = sum(labels.values()) / len(labels)
    return mean if rule == "mean" else float(mean > 0.5)


def judged_by_rule(records: Iterable[Record]) -> dict[str, dict[str, int]]:
    """Count the answers that a rule called wrong before any call to a judge: system -> rule -> answers."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        for rule in {verdict["rule"] for verdict in record["verdicts"] if verdict.get("rule")}:
            found[record["system"]][rule] += 1
    return {system: dict(counts) for system, counts in found.items()}


@dataclass(frozen=True, slots=True)
class PendingVerdict:
    """A verdict that an answer of a run still needs."""

    folder: RunFolder
    record: Record
    question: Question
    gold: str
    repeat: int


def pending_verdicts(
    folder: RunFolder, data: Dataset, golds: Mapping[str, str], judge: Judge, label_set: str, repeats: int
) -> list[PendingVerdict]:
    """List the verdicts that the answers of a run still need from a grader.

    Args:
        folder: The run folder.
        data: The data of the run.
        golds: Question id -> gold answer of the label set.
        judge: The judge.
        label_set: Name of the label set.
        repeats: Verdicts per answer.

    Returns:
        The verdicts, in the order of the records.

    Raises:
        RunFolderError: The run has verdicts of this grader from another version of the prompt.
    """
    records = folder.records()
    grader = Grader(judge.lm.model, judge.prompt, label_set)
    if others := prompt_hashes(records, grader) - {judge.prompt_hash}:
        raise RunFolderError(
            f"{folder.path} has verdicts of {grader.name} from another version of the prompt ({', '.join(others)}), "
            "and verdicts of two versions must not be mixed. Choose another --judge, or use the version of memometer "
            "that wrote them."
        )
    questions = {question.id: question for question in data.questions}
    pending = []
    for record in latest(records).values():
        gold = golds.get(record["question_id"])
        if gold is None or not is_answered(record) or record["answer"] is None:
            continue
        done = {
            verdict.get("repeat", 0)
            for verdict in record["verdicts"]
            if grader_of(verdict) == grader and verdict["label"] != "missing"
        }
        question = questions[record["question_id"]]
        pending += [PendingVerdict(folder, record, question, gold, n) for n in range(repeats) if n not in done]
    return pending


def grade_pending(
    pending: Sequence[PendingVerdict],
    judge: Judge,
    *,
    label_set: str,
    num_threads: int,
    stop: threading.Event,
    progress: Callable[[], object] = lambda: None,
    after_verdict: Callable[[PendingVerdict], object] = lambda _: None,
) -> str:
    """Ask a judge for pending verdicts and append them to the run folders.

    Args:
        pending: The verdicts to ask for.
        judge: The judge.
        label_set: Name of the label set.
        num_threads: Concurrent calls.
        stop: No further call starts once it is set.
        progress: Called after each call.
        after_verdict: Called after each verdict; it grades hidden probes.

    Returns:
        The reason why no call can succeed, or "".
    """
    abandoned, lock = threading.Event(), threading.Lock()
    fatal: list[str] = []
    failures: list[str] = []  # the error of each finished call, empty for a success
    early = EarlyStop()
    held: list[tuple[PendingVerdict, Record]] = []  # failures before the first success are not written

    def grade(item: PendingVerdict) -> None:
        if stop.is_set() or abandoned.is_set():
            return
        try:
            verdict = judge(item.question.text, item.gold, item.record["answer"], of=item.question)
        except FATAL as problem:
            fatal.append(describe(problem))
            abandoned.set()
            return
        with lock:
            if not verdict.rule:  # which is not a call, and says nothing about the judge
                failures.append(verdict.failure)
            end = "" if verdict.rule else early.add(verdict.failure)
            held.append((item, judge.record(verdict, label_set=label_set, repeat=item.repeat)))
            if not all(failures):
                write()
            if end:
                fatal.append(end)
                abandoned.set()
        progress()
        if not abandoned.is_set():
            after_verdict(item)

    def write() -> None:
        while held:
            item, verdict = held.pop(0)
            item.folder.append_verdict(key(item.record), verdict)

    with ThreadPoolExecutor(num_threads) as pool:
        futures = [pool.submit(grade, item) for item in pending]
        try:
            for future in futures:
                future.result()
        except BaseException:  # a full disk, for example; re-raised
            abandoned.set()  # no further paid call, because its verdict could not be written
            raise
    if not fatal:
        write()
    return fatal[0] if fatal else ""
