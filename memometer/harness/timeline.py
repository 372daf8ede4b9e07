"""A memory during a conversation: the turns are written up to each moment at which questions are asked.

An ingest without moments writes a whole conversation and then asks. Here the state goes from moment to moment; the
benchmark's actions (delete turns, save and load the memory) take place on the way.
"""

from __future__ import annotations

import pickle
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol, TypeVar

import dspy

from memometer.benchmarks.protocol import Action, Conversation, Moment, Question
from memometer.harness.attempt import NO_FAILURE, error_fields, with_outside
from memometer.harness.saved_copies import saved_and_loaded
from memometer.memory import Memory, State
from memometer.models.plain_adapter import PlainAdapter
from memometer.models.resolve_models import Model
from memometer.models.usage import metered
from memometer.run.folder import RunFolder
from memometer.systems.plugin import PluginError
from memometer.systems.plugin_memory import PluginMemory


class Timed(Protocol):
    """A task with its question."""

    @property
    def question(self) -> Question: ...


T = TypeVar("T", bound=Timed)


@dataclass
class Step:
    """The cost of the way to one moment.

    Attributes:
        turns: Turns that the memory has observed.
        written: Turns of this step.
        write_seconds: Time of the writing, without waiting.
        ready_seconds: Time until the memory reported that it is ready; None if it was not asked.
        bytes: Size of the state; None if unknown or not measured.
        residue: Kind of file -> id of a deleted turn -> True if its text is still in such a file of the memory.
        unsupported: Actions that the memory cannot carry out.
    """

    turns: int = 0
    written: int = 0
    write_seconds: float = 0.0
    ready_seconds: float | None = None
    bytes: int | None = None
    residue: dict[str, dict[str, bool]] = field(default_factory=dict)
    unsupported: list[str] = field(default_factory=list)


def is_timed(tasks: Sequence[Timed]) -> bool:
    """Return True if a question is asked before the end of its conversation."""
    return any(task.question.moment for task in tasks)


def moments(conversation: Conversation, tasks: Sequence[T]) -> list[tuple[Moment, list[T]]]:
    """Group tasks by their moment, in time order. Questions before the memory is ready come first."""
    groups: dict[Moment, list[T]] = defaultdict(list)
    for task in tasks:
        groups[task.question.moment or Moment(len(conversation.turns))].append(task)
    return sorted(groups.items(), key=lambda group: group[0])


class Timeline:
    """One memory of one conversation, brought from moment to moment.

    Args:
        memory: The memory.
        conversation: The conversation.
    """

    def __init__(self, memory: Memory[Any], conversation: Conversation) -> None:
        self.memory, self.conversation = memory, conversation
        self.state: State = memory.new()
        self.at = 0
        self.deleted: set[str] = set()
        self._turns = conversation.turns
        self._actions = sorted(conversation.actions, key=lambda action: action.after)
        self._next_size = 1

    def advance(self, moment: Moment) -> dict[str, Any]:
        """Write the turns up to a moment, and carry out the actions on the way.

        Returns:
            The fields of a Step that are known.
        """
        step = Step(written=moment.after - self.at)
        started = time.perf_counter()
        while self._actions and self._actions[0].after <= moment.after:
            action = self._actions.pop(0)
            self._write(action.after)
            self._carry_out(action, step)
        self._write(moment.after)
        step.write_seconds = time.perf_counter() - started
        if moment.settled:
            started = time.perf_counter()
            self.memory.ready(self.state)
            step.ready_seconds = time.perf_counter() - started
        step.turns = self.at
        if self.at >= self._next_size or self.at == len(self._turns):
            step.bytes = self._size()
            self._next_size = 2 * self.at
        return {name: value for name, value in vars(step).items() if value not in (None, {}, [])}

    def _write(self, until: int) -> None:
        for _, session in groupby(self._turns[self.at : until], key=lambda turn: turn.session):
            self.memory.observe(self.state, list(session))
        self.at = max(self.at, until)

    def _carry_out(self, action: Action, step: Step) -> None:
        if action.kind == "forget":
            self.memory.forget(self.state, action.turn_ids)
            self.deleted.update(action.turn_ids)
            return
        deleted = {turn.id: turn.text for turn in self._turns[: self.at] if turn.id in self.deleted}
        state, left = saved_and_loaded(self.memory, self.state, deleted)
        step.residue.update(left)
        if state is None:
            step.unsupported.append(action.kind)
        else:
            self.state = state

    def _size(self) -> int | None:
        if isinstance(self.memory, PluginMemory):
            return None
        try:
            return len(pickle.dumps(self.state))
        except (pickle.PicklingError, TypeError, AttributeError):  # a state may hold an open file
            return None


def steps(
    system: str,
    memory: Memory[Any],
    conversation: Conversation,
    tasks: Sequence[T],
    folder: RunFolder,
    reader: Model | None,
    stop: threading.Event,
) -> Iterator[tuple[State | None, dict[str, str], Sequence[T]]]:
    """Bring a memory to each moment at which questions of a conversation are asked.

    Args:
        system: The name of the system.
        memory: The memory.
        conversation: The conversation.
        tasks: Its tasks.
        folder: The run folder, which gets the cost of each step.
        reader: The model of a memory that calls one.
        stop: If it is set, no further step begins.

    Yields:
        The state, which is None after a failure; the error fields of its records; and the tasks to carry out before
        the next step.
    """
    timeline: Timeline | None = None
    failed = NO_FAILURE
    for moment, due in moments(conversation, tasks):
        if stop.is_set():
            break
        step: dict[str, Any] = {}
        lm = reader.lm if reader else None
        with metered() as usage, dspy.context(lm=lm, adapter=PlainAdapter(), disable_history=True):
            try:
                if failed is NO_FAILURE:
                    timeline = timeline or Timeline(memory, conversation)
                    step = timeline.advance(moment)
            except PluginError as problem:
                memory.skipped = memory.skipped or f"{conversation.id}: {problem}"
                failed = error_fields(problem, before="ingest: ")
            except Exception as problem:  # noqa: BLE001 - any memory may fail; its questions are recorded as failed
                failed = error_fields(problem, before="ingest: ")
        cost = with_outside(usage, memory.take_usage("ingest"))
        folder.append_ingest({"system": system, "conversation": conversation.id, **step, **cost, **failed})
        yield (timeline.state if timeline and failed is NO_FAILURE else None), failed, due
    if timeline:
        with suppress(PluginError):  # a system that cannot delete has answered all its questions
            memory.close(timeline.state)
