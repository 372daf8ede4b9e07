"""The evaluation loop: each conversation is read once into each system, then all its questions are asked.

The loop knows no particular memory beside the controls; it writes one record per attempt into the run folder and
computes no metric.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import dspy

from memometer.benchmarks.protocol import FREE, Conversation, Question
from memometer.budget import UNBOUNDED, show
from memometer.judging.judge import Judge, Verdict
from memometer.memory import Memory, Recall, State, TurnFormat
from memometer.models.errors import FATAL, GIVE_UP_AFTER, LM_ERROR, describe, is_of_a_model, without_keys
from memometer.models.plain_adapter import PlainAdapter
from memometer.models.resolve_models import Model
from memometer.models.usage import metered, metered_in
from memometer.reader.multi_round import inputs_of, prompt_tokens
from memometer.reader.reader import Reader
from memometer.run.folder import Key, Record, RunFolder, is_answered, key, latest, needs_verdict
from memometer.systems.baselines import NoMemory, Oracle
from memometer.token_counters import TokenCounter


@dataclass(frozen=True, slots=True)
class Task:
    """One question to one system at one budget."""

    system: str
    budget_tokens: int
    question: Question
    form: str = FREE

    @property
    def key(self) -> Key:
        return self.system, self.budget_tokens, self.question.id, self.form


def plan_tasks(
    memories: Mapping[str, Memory[Any]],
    questions: Sequence[Question],
    *,
    budgets: Sequence[int],
    window_budget: int | None = None,
    two_options: bool = False,
) -> list[Task]:
    """Every question to every system at every budget, grouped by conversation, then system.

    Args:
        window_budget: what the reader's window leaves for memory; a system that shows everything gets it instead
            of `budgets`. None where nobody reads.
        two_options: ask questions that have answer options with them, once in each order, instead of freely.
    """

    def budgets_of(memory: Memory[Any]) -> Sequence[int]:
        if isinstance(memory, NoMemory):
            return [0]
        return [window_budget or UNBOUNDED] if memory.shows_everything else budgets

    def forms_of(question: Question) -> Sequence[str]:
        return (two_options and question.option_orders) or (FREE,)

    return [
        Task(system, budget, question, form)
        for _, asked in groupby(questions, key=lambda question: question.conversation)
        for asked_here in [list(asked)]
        for system, memory in memories.items()
        for budget in budgets_of(memory)
        for question in asked_here
        for form in forms_of(question)
    ]


RANKED = 50
"""Of the ranking so many turns are recorded: more than any published measure looks at."""


def run(
    tasks: Sequence[Task],
    memory_of: Callable[[str, str], Memory[Any]],
    conversations: Iterable[Conversation],
    folder: RunFolder,
    *,
    reader: Model | None,
    readers: Mapping[str, Reader],
    judge: Judge | None = None,
    num_threads: int = 4,
    stop: threading.Event | None = None,
    progress: Callable[[Record], None] = lambda _: None,
) -> str:
    """Do every task that the folder does not hold an answer to, and append a record for each.

    `memory_of` gives the memory for a system and a conversation, `readers` the reader of each system. With no reader
    only the recall is recorded. Setting `stop` lets the calls in flight end and starts no other.
    Returns the empty string, or why no call could succeed (a rejected key, an unknown model): then it stops early.
    """
    stop = stop or threading.Event()
    by_id = {conversation.id: conversation for conversation in conversations}
    records = folder.records()
    tried = Counter(key(record) for record in records)
    found = latest(records)
    todo = [task for task in tasks if task.key not in found or not is_answered(found[task.key])]
    fatal: list[str] = []

    outcomes: list[bool] = []  # of the first few attempts: whether anything answered

    def attempt(task: Task, state: State | None, failed: dict[str, str]) -> None:
        if stop.is_set():
            return
        number = tried[task.key] + 1
        memory = memory_of(task.system, task.question.conversation)
        record, end = _attempt(
            task, memory, state, failed, number, reader=reader, reading=readers[task.system], judge=judge
        )
        folder.append(record)
        progress(record)
        if len(outcomes) < GIVE_UP_AFTER and record["calls"]:
            outcomes.append(not record["error"].startswith(LM_ERROR))
            if len(outcomes) == GIVE_UP_AFTER and not any(outcomes):
                end = f"the first {GIVE_UP_AFTER} calls failed, the last with {record['error']}"
        give_up(end)

    def grade(task: Task, judge: Judge, answer: str) -> None:
        if not stop.is_set():
            verdict, end = _judge(judge, task.question, answer)
            folder.append_verdict(task.key, verdict)
            give_up(end)

    def give_up(why: str) -> None:
        if why:
            fatal.append(why)
            stop.set()

    with ThreadPoolExecutor(num_threads) as pool:
        pending: deque[Future[None]] = deque()
        if judge:  # answers that an earlier judging left ungraded keep their text and are graded again
            for task in tasks:
                answered = found.get(task.key)
                if answered and task.question.gold is not None and needs_verdict(answered):
                    pending.append(pool.submit(grade, task, judge, answered["answer"]))
        for (conversation, system), group in groupby(todo, key=lambda task: (task.question.conversation, task.system)):
            if stop.is_set():
                break
            state, failed = _ingest(system, memory_of(system, conversation), by_id[conversation], folder, reader)
            pending.extend(pool.submit(attempt, task, state, failed) for task in group)
            # Stay a little ahead of the pool, so that memory holds the conversations in flight and no more.
            _until(pending, left=4 * num_threads, stop=stop)
        _until(pending, left=0, stop=stop)
    return fatal[0] if fatal else ""


def _until(pending: deque[Future[None]], *, left: int, stop: threading.Event) -> None:
    """Take finished futures off the left until at most `left` remain, and raise what any of them raised.

    They end nearly in order, so looking at the first one is enough. Polling keeps the main thread open to Ctrl-C.
    """
    while len(pending) > left:
        if not pending[0].done():
            time.sleep(0.01)
            continue
        try:
            pending.popleft().result()
        except BaseException:  # the disk is full, say; re-raised below
            stop.set()  # what cannot be written down must not be paid for
            raise


def _blamed(problem: Exception, *, before: str = "") -> dict[str, str]:
    """A record's `error`, where a model failed and nothing is known of the memory, or its `memory_error`: a memory that
    fails is a result. The other is empty."""
    told = before + describe(problem)
    return {"error": told, "memory_error": ""} if is_of_a_model(problem) else {"error": "", "memory_error": told}


NO_FAILURE = {"error": "", "memory_error": ""}


def _ingest(
    system: str, memory: Memory[Any], conversation: Conversation, folder: RunFolder, reader: Model | None
) -> tuple[State | None, dict[str, str]]:
    """(state or None, whose failure it was): a system that cannot read one conversation fails its questions only."""
    state: State | None = None
    failed = NO_FAILURE
    turns = 0
    lm = reader.lm if reader else None
    with metered() as usage, dspy.context(lm=lm, adapter=PlainAdapter(), disable_history=True):
        try:
            state = memory.new()
            for session in conversation.sessions:
                memory.observe(state, session.turns)
                turns += len(session.turns)
        except Exception as problem:  # noqa: BLE001 - any memory may fail; its questions are recorded as failed
            state, failed = None, _blamed(problem, before="ingest: ")
    folder.append_ingest({"system": system, "conversation": conversation.id, "turns": turns, **asdict(usage), **failed})
    return state, failed


def _attempt(
    task: Task,
    memory: Memory[Any],
    state: State | None,
    failed: dict[str, str],
    number: int,
    *,
    reader: Model | None,
    reading: Reader,
    judge: Judge | None,
) -> tuple[Record, str]:
    """(the record, why the whole run must end or "")."""
    question = task.question
    recall, answer, end = Recall(), None, ""
    signals: dict[str, Any] = {}
    verdicts: list[dict[str, Any]] = []
    with metered() as usage, metered_in(reading.read) as answering:
        if state is not None:
            try:
                recall, answer, signals = _ask(task, memory, state, reader, reading)
            except FATAL as problem:
                end = describe(problem)
                failed = _blamed(problem)
            except Exception as problem:  # noqa: BLE001 - a failure is a record, not the end of the run
                failed = _blamed(problem)
    if judge and answer is not None and question.gold is not None:
        verdict, end = _judge(judge, question, answer)
        verdicts.append(verdict)
    record = {
        "system": task.system,
        "budget_tokens": task.budget_tokens,
        "question_id": question.id,
        "form": task.form,
        "attempt": number,
        "answer": without_keys(answer) if answer else answer,
        "recall": {
            "turn_ids": recall.turn_ids,
            "ranked": recall.ranked[:RANKED],
            "tokens": recall.tokens,
            "counter": memory.count.name,
        },
        **signals,
        "verdicts": verdicts,
        **asdict(usage),  # of recall and answer together
        "answering": asdict(answering),
        "truncated": bool(reader and answer and usage.completion_tokens >= reader.max_tokens * max(1, usage.calls)),
        "model": reader.name if reader else None,
        **failed,
        "at": round(time.time(), 3),
    }
    return record, end


def _ask(
    task: Task, memory: Memory[Any], state: State, reader: Model | None, reading: Reader
) -> tuple[Recall, str | None, dict[str, Any]]:
    """(what was shown, the answer, what the record says about the reading beside these)."""
    question = task.question
    if isinstance(memory, Oracle):
        state = memory.reveal(state, question.evidence)
    if reader is None:
        recall = memory.checked_recall(state, question.text, task.budget_tokens)
        return recall, None, {"speaker_gap": recall.speaker_gap}
    with dspy.context(lm=reader.lm, adapter=PlainAdapter(), disable_history=True):
        prediction = reading(
            memory=memory,
            state=state,
            question=question.text,
            budget_tokens=task.budget_tokens,
            choices=question.options(task.form),
        )
    signals: dict[str, Any] = {"speaker_gap": prediction.recall.speaker_gap}
    if "raw_answer" in prediction:
        signals |= {
            "said": without_keys(prediction.raw_answer),
            "attributed": prediction.signals.attributed,
            "abstention_score": prediction.abstention_score,
        }
    if "rounds" in prediction:
        signals |= {
            "status": prediction.status,
            "cited": prediction.citations,
            "rounds": [asdict(round) for round in prediction.rounds],
        }
    return prediction.recall, prediction.answer, signals


def _judge(judge: Judge, question: Question, answer: str) -> tuple[dict[str, Any], str]:
    end, started = "", time.perf_counter()
    try:
        verdict = judge(question.text, question.gold or "", answer)
    except FATAL as problem:
        end = f"judge: {describe(problem)}"
        verdict = Verdict("missing", reason=describe(problem))
    return {**judge.record(verdict), "seconds": round(time.perf_counter() - started, 4)}, end


def window_budget(reader: Model, questions: Iterable[Question], readers: Iterable[Reader]) -> int | None:
    """Tokens that the reader's window leaves for any memory, beside the longest question; None for an unknown
    window."""
    if reader.context_tokens is None:
        return None
    longest = max(
        (f"{q.text} {q.options(order)}" for q in questions for order in (q.option_orders or (FREE,))),
        key=len,
        default="",
    )
    overhead = max(prompt_overhead(reader, longest, reading) for reading in readers)
    return max(0, reader.context_tokens - overhead - reader.max_tokens)


def prompt_overhead(reader: Model, question: str, reading: Reader) -> int:
    """Count the tokens of a prompt without its memory, with an allowance for the chat template."""
    with dspy.context(adapter=PlainAdapter()):
        return prompt_tokens(reading.read, inputs_of(reading.read, "", question), reader.count)


def conversation_tokens(conversation: Conversation, count: TokenCounter, form: TurnFormat | None = None) -> int:
    """What the whole conversation costs to show."""
    state = State(turns=list(conversation.turns), lines=[turn.line for turn in conversation.turns])
    return show(state, range(len(state.turns)), count, form=form).tokens
