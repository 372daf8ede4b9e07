"""An upper bound of the cost of an evaluation, known before its first call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from memometer.benchmarks.protocol import Conversation, Question
from memometer.budget import show
from memometer.harness.tasks import Task, prompt_overhead
from memometer.judging.judge import Judge
from memometer.memory import State, TurnFormat
from memometer.models.resolve_models import Model
from memometer.reader.reader import Reader, RefusingReader
from memometer.run import cost as accounting
from memometer.token_counters import TokenCounter

JUDGE_PROMPT_TOKENS = 500
"""Tokens of a judge's prompt without question, gold answer and answer."""


def estimate(
    tasks: Sequence[Task],
    *,
    model: Model,
    judge_model: Model | None,
    judge: Judge | None = None,
    readers: Mapping[str, Reader],
    memory_tokens: Callable[[Task], int],
    probes: Sequence[Question] = (),
) -> str:
    """Estimate the cost of tasks.

    It does not include retries, or the calls of memories that write with a model.

    Args:
        tasks: The tasks of the evaluation.
        model: The model that answers.
        judge_model: The model that judges.
        judge: The judge, whose prompt may need several calls per answer.
        readers: The reader of each system.
        memory_tokens: The tokens of memory in the prompt of a task, at most.
        probes: The question of each hidden probe that the judge grades.

    Returns:
        Calls, tokens and dollars in words.
    """
    texts = {task.key: f"{task.question.text} {task.question.options(task.option_order)}" for task in tasks}
    longest = max(texts.values(), key=len, default="")
    overhead = {name: prompt_overhead(model, longest, reader) for name, reader in readers.items()}
    rounds = {
        name: 0 if isinstance(reader, RefusingReader) else max(1, reader.rounds) for name, reader in readers.items()
    }
    prompts = sum(rounds[task.system] * (overhead[task.system] + memory_tokens(task)) for task in tasks)
    calls = sum(rounds[task.system] for task in tasks)
    replies = calls * model.max_tokens
    cost = accounting.forecast(model, prompts, replies)
    if judge_model:
        graded = [*(task.question for task in tasks if task.question.answerable), *probes]
        needed = [judge.calls(question) if judge else 1 for question in graded]
        grading = sum(
            n * (JUDGE_PROMPT_TOKENS + judge_model.count(f"{q.text}{q.gold}") + model.max_tokens)
            for n, q in zip(needed, graded, strict=True)
        )
        calls += sum(needed)
        prompts += grading
        replies += sum(needed) * judge_model.max_tokens
        extra = accounting.forecast(judge_model, grading, sum(needed) * judge_model.max_tokens)
        cost = None if cost is None or extra is None else cost + extra
    money = accounting.money(cost, model, judge_model)
    return f"{calls:,} calls, {prompts + replies:,} tokens, {money} without retries"


def memory_bound(
    task: Task,
    *,
    conversations: Mapping[str, Conversation],
    conversation_tokens: Mapping[str, int],
    count: TokenCounter,
    turn_format: TurnFormat | None,
) -> int:
    """Bound the memory in a task's prompt.

    Args:
        task: One question to one system.
        conversations: The conversations by id.
        conversation_tokens: Tokens of each whole conversation, by id.
        count: Counts the tokens.
        turn_format: How turns are printed; None for lines.

    Returns:
        Tokens: the budget, or everything that the system can show if that is less.
    """
    most = conversation_tokens[task.question.conversation]
    if task.system == "oracle":
        turns = {turn.id: turn for turn in conversations[task.question.conversation].turns}
        evidence = [turns[id] for id in task.question.evidence]
        state = State(turns=evidence, lines=[turn.line for turn in evidence])
        most = show(state, range(len(evidence)), count, form=turn_format).tokens
    return min(task.budget_tokens, most)
