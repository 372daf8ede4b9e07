"""Further verdicts on the answers that a run holds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from memometer.benchmarks.protocol import Dataset, Question
from memometer.judging.graders import Grading, grading_of, prompt_hashes
from memometer.judging.judge import Judge
from memometer.models.errors import FATAL, GIVE_UP_AFTER, LM_ERROR, describe
from memometer.run.folder import Record, RunFolder, RunFolderError, is_answered, key, latest


@dataclass(frozen=True, slots=True)
class Todo:
    """One verdict to get."""

    folder: RunFolder
    record: Record
    question: Question
    gold: str
    repeat: int


def missing(
    folder: RunFolder, data: Dataset, golds: Mapping[str, str], judge: Judge, key_name: str, repeats: int
) -> list[Todo]:
    """The verdicts that an answer of the run still lacks under this judge, prompt and key.

    Raises RunFolderError where the run holds verdicts of another wording of the prompt: the two would be mixed.
    """
    records = folder.records()
    grading = Grading(judge.lm.model, judge.prompt, key_name)
    if others := prompt_hashes(records, grading) - {judge.prompt_hash}:
        raise RunFolderError(
            f"{folder.path} holds verdicts of {grading.name} from another wording of the prompt ({', '.join(others)}), "
            "and two wordings may not be mixed; choose another --judge, or grade with the version that began."
        )
    questions = {question.id: question for question in data.questions}
    todo = []
    for record in latest(records).values():
        gold = golds.get(record["question_id"])
        if gold is None or not is_answered(record) or record["answer"] is None:
            continue
        have = {
            verdict.get("repeat", 0)
            for verdict in record["verdicts"]
            if grading_of(verdict) == grading and verdict["label"] != "ungraded"
        }
        question = questions[record["question_id"]]
        todo += [Todo(folder, record, question, gold, n) for n in range(repeats) if n not in have]
    return todo


def grade(
    todo: Sequence[Todo],
    judge: Judge,
    *,
    key_name: str,
    num_threads: int,
    stop: threading.Event,
    progress: Callable[[], object] = lambda: None,
) -> str:
    """Append a verdict for each. Returns why no call can succeed, or "". Setting `stop` starts no other call."""
    hopeless, lock = threading.Event(), threading.Lock()
    fatal: list[str] = []
    failed: list[str] = []  # of the calls done, what each failed with, or ""
    held: list[tuple[Todo, Record]] = []  # failures before any success: a judge that is not there leaves no mark

    def one(item: Todo) -> None:
        if stop.is_set() or hopeless.is_set():
            return
        try:
            verdict = judge(item.question.text, item.gold, item.record["answer"])
        except FATAL as problem:
            fatal.append(describe(problem))
            hopeless.set()
            return
        with lock:
            failed.append(verdict.reason if verdict.reason.startswith(LM_ERROR) else "")
            held.append((item, judge.record(verdict, key=key_name, repeat=item.repeat)))
            if not all(failed):
                write()
            elif len(failed) >= GIVE_UP_AFTER:
                fatal.append(f"the first {len(failed)} calls failed, the last with {failed[-1]}")
                hopeless.set()
        progress()

    def write() -> None:
        while held:
            item, verdict = held.pop(0)
            item.folder.append_verdict(key(item.record), verdict)

    with ThreadPoolExecutor(num_threads) as pool:
        pending = [pool.submit(one, item) for item in todo]
        try:
            for future in pending:
                future.result()
        except BaseException:  # the disk is full, say; re-raised
            hopeless.set()  # what cannot be written down must not be paid for
            raise
    if not fatal:
        write()
    return fatal[0] if fatal else ""
