"""The tasks of an evaluation, and the tokens that a context window leaves for memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import dspy

from memometer.benchmarks.protocol import FREE, Conversation, Question
from memometer.budget import UNBOUNDED, show
from memometer.memory import Memory, State, TurnFormat
from memometer.models.plain_adapter import PlainAdapter
from memometer.models.resolve_models import Model
from memometer.reader.multi_round import inputs_of, prompt_tokens
from memometer.reader.reader import Reader
from memometer.run.folder import Key
from memometer.systems.baselines import NoMemory
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
