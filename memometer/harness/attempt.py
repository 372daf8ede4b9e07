"""One attempt at a task: recall, answer and verdict, as a record for the run folder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import dspy

from memometer.benchmarks.protocol import Question
from memometer.harness.tasks import Task
from memometer.judging.judge import Judge, Verdict
from memometer.memory import Memory, Recall, State
from memometer.models.errors import FATAL, describe, is_of_a_model, without_keys
from memometer.models.plain_adapter import PlainAdapter
from memometer.models.replies import Reply, observed_replies
from memometer.models.resolve_models import Model
from memometer.models.usage import Usage, metered_answer
from memometer.reader.multi_round import inputs_of
from memometer.reader.reader import Reader, RefusingReader
from memometer.run import closed_files
from memometer.run.cost import COUNTED
from memometer.run.folder import Record
from memometer.run.shown_items import ItemTable
from memometer.systems.baselines import Oracle

RANKED = 50
"""Number of ranked turns in a record. No published metric uses more."""


@dataclass(frozen=True, slots=True)
class PreparedRecall:
    """A recall that was made before its call.

    Attributes:
        recall: The recall; None if it failed.
        problem: The exception of a recall that failed.
        seconds: The wall time.
        refused: The operations on the data file that were refused.
    """

    recall: Recall | None
    problem: Exception | None
    seconds: float
    refused: Sequence[str] = ()


def can_prepare(memory: Memory[Any], reading: Reader) -> bool:
    """Return True if the recalls of a memory may be made before their calls: they only compute, and the reader needs
    one for each question."""
    computes = memory.recall_only_computes and getattr(memory, "encoder", None) is None
    return computes and not reading.rounds and not isinstance(reading, RefusingReader)


def prepare(task: Task, memory: Memory[Any], state: State) -> PreparedRecall:
    """Make the recall of a task."""
    started = time.perf_counter()
    recall = problem = None
    with closed_files.closed() as refused:
        try:
            recall = _recall(task, memory, state)
        except Exception as error:  # noqa: BLE001 - the attempt raises it and records the failure
            problem = error
    return PreparedRecall(recall, problem, time.perf_counter() - started, refused)


def _recall(task: Task, memory: Memory[Any], state: State) -> Recall:
    if isinstance(memory, Oracle):
        state = memory.reveal(state, task.question.evidence)
    if task.question.asker:
        memory = memory.asked_by(task.question.asker)
    return memory.checked_recall(state, task.question.text, task.budget_tokens)


def error_fields(problem: Exception, *, before: str = "") -> dict[str, str]:
    """The `error` of a record if a model failed, which says nothing about the memory, otherwise its `memory_error`."""
    message = before + describe(problem)
    return {"error": message, "memory_error": ""} if is_of_a_model(problem) else {"error": "", "memory_error": message}


NO_FAILURE = {"error": "", "memory_error": ""}


def with_outside(usage: Usage, outside: Mapping[str, int]) -> dict[str, Any]:
    """The fields of a usage with the calls that a plug-in made in its own process (`outside`) added."""
    fields = asdict(usage)
    if not any(outside.values()):
        return fields
    return {**fields, **{name: fields[name] + outside.get(name, 0) for name in COUNTED}, "outside": dict(outside)}


def attempt_task(
    task: Task,
    memory: Memory[Any],
    state: State | None,
    failed: dict[str, str],
    number: int,
    items: ItemTable,
    *,
    reader: Model | None,
    reading: Reader,
    judge: Judge | None,
    prepared: PreparedRecall | None = None,
) -> tuple[Record, str]:
    """Carry out a task; returns the record, and the reason why the run must end or an empty text."""
    question = task.question
    asked = memory.asked_by(question.asker) if question.asker else memory
    recall, answer, end = Recall(), None, ""
    signals: dict[str, Any] = {}
    verdicts: list[dict[str, Any]] = []
    lm = reading.read.lm or reader.lm if reader else None
    with (
        closed_files.closed() as refused,
        observed_replies() as replies,
        metered_answer(reading.read, lm if prepared else None) as (usage, answering),
    ):
        if state is not None:
            try:
                recall, answer, signals = _ask(task, asked, state, reader, reading, prepared)
            except FATAL as problem:
                end = describe(problem)
                failed = error_fields(problem)
            except Exception as problem:  # noqa: BLE001 - a failure is a record, not the end of the run
                failed = error_fields(problem)
    if prepared:
        usage.seconds = round(usage.seconds + prepared.seconds, 4)
        refused += prepared.refused
    returned = asked.returned(state, question.text) if state is not None else ()
    if judge and answer is not None and question.gold is not None:
        verdict, end = grade_answer(judge, question, answer)
        verdicts.append(verdict)
    shown = without_keys(answer) if answer else answer
    if "raw_answer" in signals:
        raw = signals["raw_answer"]
        signals["raw_answer"] = shown if raw == answer else without_keys(raw)
    record = {
        "system": task.system,
        "budget_tokens": task.budget_tokens,
        "question_id": question.id,
        "conversation": question.conversation,
        "category": question.category,
        "gold": question.gold,
        "evidence": question.evidence,
        "option_order": task.option_order,
        "attempt": number,
        "answer": shown,
        "recall": {
            "turn_ids": recall.whole_ids if recall.provenance == "turn" else None,
            **({"partial_ids": recall.partial_ids} if recall.partial_ids else {}),
            "ranked": recall.ranked[:RANKED],
            "tokens": recall.tokens,
            "counter": memory.count.name,
            **items.record(task.system, question.id, recall, returned),
        },
        **signals,
        "verdicts": verdicts,
        **with_outside(usage, memory.take_usage("search")),  # includes recall and answer
        "answering": asdict(answering),
        "truncated": bool(answer) and _is_cut(reader, replies, usage),
        "finish_reason": replies[-1].finish_reason if replies else "",
        "model": reader.name if reader else None,
        **failed,
        **({"data_file_refused": refused} if refused else {}),
        "at": round(time.time(), 3),
    }
    return record, end


def prompt_size(reading: Reader, reader: Model) -> int:
    """Count the texts of a prompt without memory and question, and without the chat template."""
    messages = PlainAdapter().format(reading.read.signature, reading.read.demos, inputs_of(reading.read, "", ""))
    return sum(reader.count(str(message["content"])) for message in messages)


def _is_cut(reader: Model | None, replies: Sequence[Reply], usage: Usage) -> bool:
    """True if the model reached the limit of a reply. A client that tells no reason is judged by the tokens."""
    if replies:
        return any(reply.finish_reason == "length" for reply in replies)
    return bool(reader and usage.completion_tokens >= reader.max_tokens * max(1, usage.calls))


def _ask(
    task: Task,
    memory: Memory[Any],
    state: State,
    reader: Model | None,
    reading: Reader,
    prepared: PreparedRecall | None,
) -> tuple[Recall, str | None, dict[str, Any]]:
    """Recall and answer; returns the recall, the answer (None without a model) and further fields of the record."""
    question = task.question
    if prepared and prepared.problem:
        raise prepared.problem
    recall = prepared.recall if prepared else None
    if reader is None:
        recall = recall or _recall(task, memory, state)
        return recall, None, {"speaker_gap": recall.speaker_gap}
    if isinstance(memory, Oracle):
        state = memory.reveal(state, question.evidence)
    with dspy.context(lm=reader.lm, adapter=PlainAdapter(), disable_history=True):
        prediction = reading(
            memory=memory,
            state=state,
            question=question.text,
            budget_tokens=task.budget_tokens,
            choices=question.options(task.option_order),
            **({"recall": recall} if recall else {}),
        )
    signals: dict[str, Any] = {"speaker_gap": prediction.recall.speaker_gap}
    if "raw_answer" in prediction:
        signals |= {
            "raw_answer": prediction.raw_answer,
            "attributed": prediction.signals.attributed,
            "abstention_score": prediction.abstention_score,
        }
    if "rounds" in prediction:
        signals |= {
            "status": prediction.status,
            "citations": prediction.citations,
            "rounds": [asdict(round) for round in prediction.rounds],
        }
    return prediction.recall, prediction.answer, signals


def grade_answer(judge: Judge, question: Question, answer: str) -> tuple[dict[str, Any], str]:
    end, started = "", time.perf_counter()
    try:
        verdict = judge(question.text, question.gold or "", answer, of=question)
    except FATAL as problem:
        end = f"judge: {describe(problem)}"
        verdict = Verdict("missing", reason=describe(problem))
    return {**judge.record(verdict), "seconds": round(time.perf_counter() - started, 4)}, end
