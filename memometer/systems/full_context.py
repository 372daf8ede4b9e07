"""The whole conversation as context: a baseline that most published memories do not reach."""

from memometer.budget import show
from memometer.memory import BudgetTooSmall, Memory, Recall, State


class FullContext(Memory[State]):
    """Shows every turn, or raises BudgetTooSmall; a truncated context would be another system."""

    shows_everything = True

    def recall(self, state: State, question: str, budget_tokens: int) -> Recall:
        recall = show(state, range(len(state.turns)), self.count, form=self.form)
        if recall.tokens > budget_tokens:
            raise BudgetTooSmall(f"full_context needs {recall.tokens:,} tokens, the budget is {budget_tokens:,}")
        return recall
