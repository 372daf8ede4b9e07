"""The evaluation loop: ingest each conversation once per system, then ask all its questions.

The loop treats all memory systems alike, except the baselines. It writes one record per attempt into the run folder
and computes no metric.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from typing import Any, Protocol

import dspy

from memometer.benchmarks.protocol import FREE, Conversation, Question, Session
from memometer.budget import UNBOUNDED, show
from memometer.judging.judge import NOT_A_LABEL, Judge, Verdict
from memometer.memory import Memory, Recall, State, TurnFormat
from memometer.models.errors import FATAL, TOO_LONG, EarlyStop, describe, is_of_a_model, without_keys
from memometer.models.plain_adapter import PlainAdapter
from memometer.models.replies import Reply, observed_replies
from memometer.models.resolve_models import Model
from memometer.models.usage import Usage, metered, metered_in
from memometer.reader.multi_round import inputs_of, prompt_tokens
from memometer.reader.reader import Reader
from memometer.run.cost import COUNTED
from memometer.run.folder import Key, Record, RunFolder, is_answered, key, latest, needs_verdict
from memometer.run.progress import bar
from memometer.run.shown_items import ItemTable
from memometer.systems.baselines import NoMemory, Oracle
from memometer.systems.plugin import PluginError
from memometer.systems.plugin_memory import PluginMemory
from memometer.token_counters import TokenCounter


@dataclass(frozen=True, slots=True)
class Task:
    """One question to one system at one budget, in one order of its answer options."""

    system: str
    budget_tokens: int
    question: Question
    option_order: str = FREE

    @property
    def key(self) -> Key:
        """The identity of the task in a run folder."""
        return self.system, self.budget_tokens, self.question.id, self.option_order


def plan_tasks(
    memories: Mapping[str, Memory[Any]],
    questions: Sequence[Question],
    *,
    budgets: Sequence[int],
    window_budget: int | None = None,
    two_options: bool = False,
) -> list[Task]:
    """Plan every question to every system at every budget.

    Args:
        memories: Name -> memory system.
        questions: The questions, grouped by conversation.
        budgets: Budgets in tokens.
        window_budget: Tokens that the context window leaves for memory. A system that shows everything gets this in
            place of `budgets`. None if no model answers or its window is unknown.
        two_options: Ask questions that have answer options with them, once in each order.

    Returns:
        The tasks, grouped by conversation, then by system.
    """

    def budgets_of(memory: Memory[Any]) -> Sequence[int]:
        if isinstance(memory, NoMemory):
            return [0]
        return [window_budget or UNBOUNDED] if memory.shows_everything else budgets

    def orders_of(question: Question) -> Sequence[str]:
        return (two_options and question.option_orders) or (FREE,)

    return [
        Task(system, budget, question, order)
        for _, group in groupby(questions, key=lambda question: question.conversation)
        for asked_here in [list(group)]
        for system, memory in memories.items()
        for budget in budgets_of(memory)
        for question in asked_here
        for order in orders_of(question)
    ]


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


RANKED = 50
"""Number of ranked turns in a record. No published metric uses more."""


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
    overheads = {name: _prompt_size(reading, reader) for name, reading in readers.items()} if reader else {}

    def attempt(task: Task, state: State | None, failed: dict[str, str], end_of_group: Callable[[], None]) -> None:
        try:
            carry_out(task, state, failed)
        finally:
            end_of_group()

    def carry_out(task: Task, state: State | None, failed: dict[str, str]) -> None:
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
            record, end = _attempt(
                task, memory, state, failed, number, items, reader=reader, reading=readers[task.system], judge=judge
            )
            if reader and memory.count.name == reader.count.name:
                question = f"{task.question.text} {task.question.options(task.option_order)}".strip()
                size = overheads[task.system] + record["recall"]["tokens"] + reader.count(question)
                record["counted_prompt_tokens"] = size
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
        give_up(end)

    def grade(task: Task, judge: Judge, answer: str) -> None:
        if not stop.is_set():
            with answering(task.key) as calls:
                verdict, end = _judge(judge, task.question, answer)
            if not calls.waits:
                calls.mark(verdict)
                folder.append_verdict(task.key, verdict)
                give_up(end or judge_ends(verdict))

    def judge_ends(verdict: Mapping[str, Any]) -> str:
        why = early_judge.add("" if verdict["reason"] == NOT_A_LABEL else verdict["reason"])
        return why and f"judge: {why}"

    def give_up(why: str) -> None:
        if why:
            fatal.append(why)
            stop.set()

    with ThreadPoolExecutor(num_threads) as pool:
        pending: deque[Future[None]] = deque()
        if judge:  # answers without a verdict are judged again; the answers stay
            for task in tasks:
                answered = found.get(task.key)
                if answered and task.question.gold is not None and needs_verdict(answered):
                    pending.append(pool.submit(grade, task, judge, answered["answer"]))
        for (conversation, system), group in groupby(todo, key=lambda task: (task.question.conversation, task.system)):
            if stop.is_set():
                break
            memory, here = memory_of(system, conversation), list(group)
            if memory.skipped:
                continue
            state, failed = _ingest(system, memory, by_id[conversation], folder, reader, stop)
            if state is None and stop.is_set():
                memory.skipped = ""  # the cost limit, or Ctrl-C; --resume tries again
            end_of_group = _after(len(here), partial(_close, memory, state))
            pending.extend(pool.submit(attempt, task, state, failed, end_of_group) for task in here)
            # Submit few tasks in advance, so that few conversations are in memory at once.
            _until(pending, left=4 * num_threads, stop=stop)
        _until(pending, left=0, stop=stop)
    return fatal[0] if fatal else ""


def _until(pending: deque[Future[None]], *, left: int, stop: threading.Event) -> None:
    """Wait until at most `left` futures remain, and re-raise their exceptions.

    They end nearly in order, so it is enough to check the first. Polling lets the main thread handle Ctrl-C.
    """
    while len(pending) > left:
        if not pending[0].done():
            time.sleep(0.01)
            continue
        try:
            pending.popleft().result()
        except BaseException:  # for example the disk is full; raised again below
            stop.set()  # do not pay for answers that cannot be saved
            raise


def _error_fields(problem: Exception, *, before: str = "") -> dict[str, str]:
    """The `error` of a record if a model failed, which says nothing about the memory, otherwise its `memory_error`."""
    message = before + describe(problem)
    return {"error": message, "memory_error": ""} if is_of_a_model(problem) else {"error": "", "memory_error": message}


NO_FAILURE = {"error": "", "memory_error": ""}


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
    with metered() as usage, dspy.context(lm=lm, adapter=PlainAdapter(), disable_history=True):
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
            state, failed = None, _error_fields(problem, before="ingest: ")
        except Exception as problem:  # noqa: BLE001 - any memory may fail; its questions are recorded as failed
            state, failed = None, _error_fields(problem, before="ingest: ")
    line = {"system": system, "conversation": conversation.id, "turns": turns}
    folder.append_ingest({**line, **_with_outside(usage, memory.take_usage("ingest")), **failed})
    return state, failed


def _with_outside(usage: Usage, outside: Mapping[str, int]) -> dict[str, Any]:
    """The fields of a usage with the calls that a plug-in made in its own process (`outside`) added."""
    fields = asdict(usage)
    if not any(outside.values()):
        return fields
    return {**fields, **{name: fields[name] + outside.get(name, 0) for name in COUNTED}, "outside": dict(outside)}


def _shown_progress(system: str, memory: Memory[Any], conversation: Conversation) -> Iterator[Session]:
    """The sessions of a conversation; a bar shows the progress of a system that needs long for them."""
    if not (memory.needs_model or isinstance(memory, PluginMemory)):
        yield from conversation.sessions
        return
    with bar(total=len(conversation.turns), desc=f"{system[:30]} {conversation.id}", unit="turn", leave=False) as shown:
        for session in conversation.sessions:
            yield session
            shown.update(len(session.turns))


def _attempt(
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
) -> tuple[Record, str]:
    """Carry out a task; returns the record, and the reason why the run must end or an empty text."""
    question = task.question
    recall, answer, end = Recall(), None, ""
    signals: dict[str, Any] = {}
    verdicts: list[dict[str, Any]] = []
    with observed_replies() as replies, metered() as usage, metered_in(reading.read) as answering:
        if state is not None:
            try:
                recall, answer, signals = _ask(task, memory, state, reader, reading)
            except FATAL as problem:
                end = describe(problem)
                failed = _error_fields(problem)
            except Exception as problem:  # noqa: BLE001 - a failure is a record, not the end of the run
                failed = _error_fields(problem)
    returned = memory.returned(state, question.text) if state is not None else ()
    if judge and answer is not None and question.gold is not None:
        verdict, end = _judge(judge, question, answer)
        verdicts.append(verdict)
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
        "answer": without_keys(answer) if answer else answer,
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
        **_with_outside(usage, memory.take_usage("search")),  # includes recall and answer
        "answering": asdict(answering),
        "truncated": bool(answer) and _is_cut(reader, replies, usage),
        "finish_reason": replies[-1].finish_reason if replies else "",
        "model": reader.name if reader else None,
        **failed,
        "at": round(time.time(), 3),
    }
    return record, end


def _prompt_size(reading: Reader, reader: Model) -> int:
    """Count the texts of a prompt without memory and question, and without the chat template."""
    messages = PlainAdapter().format(reading.read.signature, reading.read.demos, inputs_of(reading.read, "", ""))
    return sum(reader.count(str(message["content"])) for message in messages)


def _is_cut(reader: Model | None, replies: Sequence[Reply], usage: Usage) -> bool:
    """True if the model reached the limit of a reply. A client that tells no reason is judged by the tokens."""
    if replies:
        return any(reply.finish_reason == "length" for reply in replies)
    return bool(reader and usage.completion_tokens >= reader.max_tokens * max(1, usage.calls))


def _ask(
    task: Task, memory: Memory[Any], state: State, reader: Model | None, reading: Reader
) -> tuple[Recall, str | None, dict[str, Any]]:
    """Recall and answer; returns the recall, the answer (None without a model) and further fields of the record."""
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
            choices=question.options(task.option_order),
        )
    signals: dict[str, Any] = {"speaker_gap": prediction.recall.speaker_gap}
    if "raw_answer" in prediction:
        signals |= {
            "raw_answer": without_keys(prediction.raw_answer),
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


def _judge(judge: Judge, question: Question, answer: str) -> tuple[dict[str, Any], str]:
    end, started = "", time.perf_counter()
    try:
        verdict = judge(question.text, question.gold or "", answer, of=question)
    except FATAL as problem:
        end = f"judge: {describe(problem)}"
        verdict = Verdict("missing", reason=describe(problem))
    return {**judge.record(verdict), "seconds": round(time.perf_counter() - started, 4)}, end


def window_budget(reader: Model, questions: Iterable[Question], readers: Iterable[Reader]) -> int | None:
    """Tokens that the context window leaves for memory.

    Args:
        reader: The model that answers.
        questions: The questions; the longest counts.
        readers: The readers; the longest prompt counts.

    Returns:
        The tokens, or None if the window is unknown.
    """
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
    """Count the tokens of a whole conversation in a prompt."""
    state = State(turns=list(conversation.turns), lines=[turn.line for turn in conversation.turns])
    return show(state, range(len(state.turns)), count, form=form).tokens
