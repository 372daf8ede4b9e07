"""The evaluation loop: ingest each conversation once per system, then ask all its questions.

The loop treats all memory systems alike, except the baselines. It writes one record per attempt into the run folder
and computes no metric.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from itertools import groupby
from typing import Any, Protocol

import dspy

from memometer.benchmarks.protocol import Conversation, Question, Session
from memometer.harness.attempt import (
    NO_FAILURE,
    PreparedRecall,
    attempt_task,
    can_prepare,
    error_fields,
    grade_answer,
    prepare,
    prompt_size,
    with_outside,
)
from memometer.harness.tasks import Task
from memometer.harness.timeline import is_timed, steps
from memometer.judging.judge import NOT_A_LABEL, Judge
from memometer.memory import Memory, State
from memometer.models.errors import TOO_LONG, EarlyStop
from memometer.models.plain_adapter import PlainAdapter
from memometer.models.resolve_models import Model
from memometer.models.usage import metered
from memometer.reader.reader import Reader
from memometer.run import closed_files
from memometer.run.folder import Key, Record, RunFolder, is_answered, key, latest, needs_verdict
from memometer.run.progress import bar
from memometer.run.shown_items import ItemTable
from memometer.systems.plugin import PluginError
from memometer.systems.plugin_memory import PluginMemory

Traced = Callable[[str, int, Question, str], AbstractContextManager[Callable[[Record], None]]]
"""(system, budget in tokens, question, option order) -> a block in which the question is answered. The block calls the
yielded function with the record."""


def untraced(*_: object) -> AbstractContextManager[Callable[[Record], None]]:
    """Make no trace."""
    return nullcontext(lambda _: None)


class Calls(Protocol):
    """The calls of a task, which may wait for a batch (`memometer.harness.batches`)."""

    waits: bool

    def mark(self, record: Record) -> None:
        """Add facts about the calls to a record or a verdict."""


class AtOnce:
    """Calls that are answered at once."""

    waits = False

    def mark(self, record: Record) -> None:
        """There is nothing to add."""


Answering = Callable[[Key], AbstractContextManager[Calls]]
"""Task -> a block in which it is carried out. If it `waits` after the block, it gets no record."""


def at_once(_: Key) -> AbstractContextManager[Calls]:
    """Answer the calls of a task at once."""
    return nullcontext(AtOnce())


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
    traced: Traced = untraced,
    answering: Answering = at_once,
    after_verdict: Callable[[], None] = lambda: None,
) -> str:
    """Carry out every task without a result in the folder, and append a record for each.

    Each conversation is ingested once per system; then its questions are asked.

    Args:
        tasks: The tasks, grouped by conversation and system.
        memory_of: (system, conversation id) -> memory.
        conversations: The conversations of the tasks.
        folder: The run folder.
        reader: The model that answers; None to record the recall only.
        readers: System -> its reader.
        judge: Judges the answers to answerable questions.
        num_threads: Concurrent calls.
        stop: If it is set, the calls in flight end and no other starts.
        progress: Called with each new record.
        traced: Makes a trace of each attempt.
        answering: How the calls of a task are answered.
        after_verdict: Called after each new verdict; it grades hidden probes.

    Returns:
        An empty text, or the reason why no call can succeed, such as a rejected key; the run then ends early.

    Raises:
        OSError: The folder cannot be written.
    """
    stop = stop or threading.Event()
    by_id = {conversation.id: conversation for conversation in conversations}
    records = folder.records()
    tried = Counter(key(record) for record in records)
    found = latest(records)
    todo = [task for task in tasks if task.key not in found or not is_answered(found[task.key])]
    fatal: list[str] = []

    items = ItemTable(folder)
    early, early_judge = EarlyStop(), EarlyStop()
    # The tokens of each prompt without memory and question, counted once.
    overheads = {name: prompt_size(reading, reader) for name, reading in readers.items()} if reader else {}

    def attempt(
        task: Task,
        state: State | None,
        failed: dict[str, str],
        prepared: PreparedRecall | None,
        end_of_group: Callable[[], None],
    ) -> None:
        try:
            carry_out(task, state, failed, prepared)
        finally:
            end_of_group()

    def carry_out(task: Task, state: State | None, failed: dict[str, str], prepared: PreparedRecall | None) -> None:
        if stop.is_set():
            return
        number = tried[task.key] + 1
        memory = memory_of(task.system, task.question.conversation)
        if memory.skipped:
            return
        with (
            answering(task.key) as calls,
            traced(task.system, task.budget_tokens, task.question, task.option_order) as end_trace,
        ):
            record, end = attempt_task(
                task,
                memory,
                state,
                failed,
                number,
                items,
                reader=reader,
                reading=readers[task.system],
                judge=judge,
                prepared=prepared,
            )
            if reader and memory.count.name == reader.count.name:
                question = f"{task.question.text} {task.question.options(task.option_order)}".strip()
                shown = [call["context_tokens"] for call in record.get("rounds", ())] or [record["recall"]["tokens"]]
                each = overheads[task.system] + reader.count(question)
                record["counted_prompt_tokens"] = len(shown) * each + sum(shown)
            end_trace(record)
        if calls.waits:
            return
        calls.mark(record)
        if record["memory_error"] and stop.is_set():
            return  # a call that was refused at the cost limit is not a failure of the memory
        folder.append(record)
        progress(record)
        if record["calls"]:
            end = end or early.add(record["error"], of_prompt=record["error"].startswith(TOO_LONG))
        for verdict in record["verdicts"]:
            end = end or judge_ends(verdict)
            after_verdict()
        give_up(end)

    def grade(task: Task, judge: Judge, answer: str) -> None:
        if not stop.is_set():
            with answering(task.key) as calls:
                verdict, end = grade_answer(judge, task.question, answer)
            if not calls.waits:
                calls.mark(verdict)
                folder.append_verdict(task.key, verdict)
                after_verdict()
                give_up(end or judge_ends(verdict))

    def judge_ends(verdict: Mapping[str, Any]) -> str:
        if verdict.get("rule"):  # which is not a call, and says nothing about the judge
            return ""
        why = early_judge.add("" if verdict["reason"] == NOT_A_LABEL else verdict["reason"])
        return why and f"judge: {why}"

    def give_up(why: str) -> None:
        if why:
            fatal.append(why)
            stop.set()

    with _Calls(num_threads, stop) as calls:
        if judge:  # answers without a verdict are judged again; the answers stay
            for task in tasks:
                answered = found.get(task.key)
                if answered and task.question.gold is not None and needs_verdict(answered):
                    calls.wait_for_room()
                    calls.submit(grade, task, judge, answered["answer"])
        for (conversation, system), group in groupby(todo, key=lambda task: (task.question.conversation, task.system)):
            if stop.is_set():
                break
            memory, here = memory_of(system, conversation), list(group)
            if memory.skipped:
                continue
            if is_timed(here):
                for state, failed, due in steps(system, memory, by_id[conversation], here, folder, reader, stop):
                    for task in due:
                        calls.wait_for_room()
                        calls.submit(attempt, task, state, failed, None, lambda: None)
                    calls.wait_for_all()  # the state changes only after its questions were answered
                if stop.is_set():
                    memory.skipped = ""
                continue
            state, failed = _ingest(system, memory, by_id[conversation], folder, reader, stop)
            if state is None and stop.is_set():
                memory.skipped = ""  # the cost limit, or Ctrl-C; --resume tries again
            end_of_group = _after(len(here), partial(_close, memory, state))
            ahead = state is not None and traced is untraced and can_prepare(memory, readers[system])
            before: Task | None = None
            prepared: PreparedRecall | None = None
            for task in here:
                calls.wait_for_room()
                # Here and not in the threads of the calls, which then only wait for the model.
                if stop.is_set():
                    prepared = None
                elif ahead and state and not _is_repeat(task, before):
                    before, prepared = task, prepare(task, memory, state)
                calls.submit(attempt, task, state, failed, prepared, end_of_group)
    return fatal[0] if fatal else ""


def _is_repeat(task: Task, before: Task | None) -> bool:
    """True if two tasks have the same recall: they ask one question, with its answer options in another order."""
    return before is not None and before.key[:3] == task.key[:3]


class _Calls:
    """The threads of the calls, with a short queue, so that few recalls and conversations are in memory at once.

    Args:
        num_threads: Concurrent calls.
        stop: Set if a call raises, so that nothing is paid for that cannot be saved.
    """

    def __init__(self, num_threads: int, stop: threading.Event) -> None:
        self._pool = ThreadPoolExecutor(num_threads)
        self._room = threading.Semaphore(2 * num_threads)
        self._stop = stop
        self._futures: deque[Future[None]] = deque()

    def __enter__(self) -> _Calls:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.wait_for_all()
        finally:
            self._pool.shutdown()

    def wait_for_room(self) -> None:
        """Wait until the queue is short, and raise the exception of a call that ended."""
        while not self._room.acquire(timeout=0.1):
            self._raise_failures()
        self._raise_failures()

    def wait_for_all(self) -> None:
        """Wait until all calls have ended, and raise the exception of one."""
        while self._futures:
            wait([self._futures[0]], timeout=0.05)  # polling lets the main thread handle Ctrl-C
            self._raise_failures()

    def submit(self, call: Callable[..., None], *args: Any) -> None:
        """Queue a call, after `wait_for_room`."""
        future = self._pool.submit(call, *args)
        future.add_done_callback(lambda _: self._room.release())
        self._futures.append(future)

    def _raise_failures(self) -> None:
        while self._futures and self._futures[0].done():
            try:
                self._futures.popleft().result()
            except BaseException:  # for example the disk is full
                self._stop.set()
                raise


def _after(number: int, then: Callable[[], None]) -> Callable[[], None]:
    """A function that calls `then` when it was called `number` times, from any thread."""
    left, lock = [number], threading.Lock()

    def one_less() -> None:
        with lock:
            left[0] -= 1
            last = left[0] == 0
        if last:
            then()

    return one_less


def _close(memory: Memory[Any], state: State | None) -> None:
    if state is not None:
        with suppress(PluginError):  # a system that cannot delete has answered all its questions
            memory.close(state)


def _ingest(
    system: str,
    memory: Memory[Any],
    conversation: Conversation,
    folder: RunFolder,
    reader: Model | None,
    stop: threading.Event,
) -> tuple[State | None, dict[str, str]]:
    """Ingest a conversation. If that fails, only the questions about this conversation fail. `stop` ends it early.

    Returns the state (None after a failure) and the error fields of its records."""
    state: State | None = None
    failed = NO_FAILURE
    turns = 0
    lm = reader.lm if reader else None
    with (
        closed_files.closed() as refused,
        metered() as usage,
        dspy.context(lm=lm, adapter=PlainAdapter(), disable_history=True),
    ):
        try:
            state = memory.new()
            for session in _shown_progress(system, memory, conversation):
                if stop.is_set():  # no question about this conversation is asked any more
                    break
                memory.observe(state, session.turns)
                turns += len(session.turns)
            else:
                memory.finish(state)
        except PluginError as problem:
            memory.skipped = memory.skipped or f"{conversation.id}: {problem}"
            state, failed = None, error_fields(problem, before="ingest: ")
        except Exception as problem:  # noqa: BLE001 - any memory may fail; its questions are recorded as failed
            state, failed = None, error_fields(problem, before="ingest: ")
    line = {"system": system, "conversation": conversation.id, "turns": turns}
    line |= {"data_file_refused": refused} if refused else {}
    folder.append_ingest({**line, **with_outside(usage, memory.take_usage("ingest")), **failed})
    return state, failed


def _shown_progress(system: str, memory: Memory[Any], conversation: Conversation) -> Iterator[Session]:
    """The sessions of a conversation; a bar shows the progress of a system that needs long for them."""
    if not (memory.needs_model or isinstance(memory, PluginMemory)):
        yield from conversation.sessions
        return
    with bar(total=len(conversation.turns), desc=f"{system[:30]} {conversation.id}", unit="turn", leave=False) as shown:
        for session in conversation.sessions:
            yield session
            shown.update(len(session.turns))
