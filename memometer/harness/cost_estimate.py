"""What a run takes at most, known before its first call: calls, tokens and dollars."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from memometer.budget import show
from memometer.harness.loop import Task, prompt_overhead
from memometer.memory import State
from memometer.reader.reader import RefusingReader
from memometer.run import cost as accounting
from memometer.run.folder import Key

if TYPE_CHECKING:
    from memometer.harness.plan import Choice


def forecast(choice: Choice, done: Collection[Key] = ()) -> str:
    """An upper bound in words, but for retries and for memories that call a model to write.

    `done` are the questions that an earlier part of the run has answered.
    """
    assert choice.reader
    tasks = [task for task in choice.tasks if task.key not in done]
    asked = {task.key: f"{task.question.text} {task.question.options(task.form)}" for task in tasks}
    longest = max(asked.values(), key=len, default="")
    overhead = {name: prompt_overhead(choice.reader, longest, reading) for name, reading in choice.readers.items()}
    rounds = {
        name: 0 if isinstance(reading, RefusingReader) else max(1, reading.rounds)
        for name, reading in choice.readers.items()
    }
    prompts = sum(rounds[task.system] * (overhead[task.system] + _most_memory(choice, task)) for task in tasks)
    calls = sum(rounds[task.system] for task in tasks)
    replies = calls * choice.reader.max_tokens
    cost = accounting.forecast(choice.reader, prompts, replies)
    if choice.judge_model:
        graded = [task.question for task in tasks if task.question.gold is not None]
        grading = sum(500 + choice.judge_model.count(f"{q.text}{q.gold}") + choice.reader.max_tokens for q in graded)
        calls += len(graded)
        prompts += grading
        replies += len(graded) * choice.judge_model.max_tokens
        extra = accounting.forecast(choice.judge_model, grading, len(graded) * choice.judge_model.max_tokens)
        cost = None if cost is None or extra is None else cost + extra
    money = accounting.money(cost, choice.reader, choice.judge_model)
    return f"{calls:,} calls, {prompts + replies:,} tokens, {money} without retries"


def _most_memory(choice: Choice, task: Task) -> int:
    """Tokens: no memory shows more than the budget, or than there is."""
    whole = choice.whole[task.question.conversation]
    if task.system == "oracle":
        turns = {turn.id: turn for c in choice.conversations if c.id == task.question.conversation for turn in c.turns}
        evidence = [turns[id] for id in task.question.evidence]
        state = State(turns=evidence, lines=[turn.line for turn in evidence])
        whole = show(state, range(len(evidence)), choice.count, form=choice.form).tokens
    return min(task.budget_tokens, whole)
