"""The evidence recall of an evaluation before a model answers: it takes seconds, while answers may take minutes."""

from __future__ import annotations

from collections import defaultdict
from itertools import groupby
from statistics import fmean
from typing import Any

from memometer.benchmarks.metrics import evidence_recall
from memometer.harness.plan import Plan
from memometer.harness.tasks import Task
from memometer.memory import Memory
from memometer.report.presenter import Table
from memometer.report.summary import shown_budget
from memometer.stats.number_format import number, percent
from memometer.systems import BASELINES

MAX_TASKS = 200
"""Of a larger evaluation the table takes too long for a preview."""


def recall_table(plan: Plan) -> Table | None:
    """Recall for every question with evidence, with the systems that need neither a model nor a store.

    Args:
        plan: The plan of the evaluation.

    Returns:
        A table, or None if there are too many questions or no such systems.
    """
    asked = [
        task
        for task in plan.tasks
        if task.question.answerable and task.question.evidence and _is_cheap(task.system, plan)
    ]
    if not 0 < len(asked) <= MAX_TASKS:
        return None
    conversations = {conversation.id: conversation for conversation in plan.conversations}
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for (conversation, system), tasks in groupby(asked, key=lambda task: (task.question.conversation, task.system)):
        memory = plan.memory_of(system, conversation)
        state = memory.new()
        for session in conversations[conversation].sessions:
            memory.observe(state, session.turns)
        for task in tasks:
            found[system, task.budget_tokens].append(_recalled(memory, state, task))
    rows = [
        [system, shown_budget(budget), number(len(values)), percent(fmean(values))]
        for (system, budget), values in found.items()
    ]
    return Table("Evidence recall in percent, before a model answers", ["system", "budget", "n", "recall"], rows)


def _recalled(memory: Memory[Any], state: Any, task: Task) -> float:
    shown = memory.checked_recall(state, task.question.text, task.budget_tokens).whole_ids
    return evidence_recall(task.question.evidence, set(shown)) or 0.0


def _is_cheap(system: str, plan: Plan) -> bool:
    memory = plan.systems.memories[system]
    if system in BASELINES or memory.skipped or not memory.shows_turns or memory.shows_everything:
        return False
    return not (memory.needs_model or memory.needs_encoder or memory.takes_memory_url or plan.systems.encoder)
