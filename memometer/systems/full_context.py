"""Full context: the whole conversation, the baseline that most published memories do not reach."""

from memometer.budget import show
from memometer.memory import BudgetTooSmall, Memory, Recall, State


class FullContext(Memory[State]):
    """Every turn, or BudgetTooSmall: a truncated full context would be another system under this name."""

    shows_everything = True

    def recall(self, state: State, question: str, budget_tokens: int) -> Recall:
        recall = show(state, range(len(state.turns)), self.count, form=self.form)
        if recall.tokens > budget_tokens:
            raise BudgetTooSmall(f"full_context needs {recall.tokens:,} tokens, the budget is {budget_tokens:,}")
        return recall
