"""The whole conversation as context. Most published memory systems score below this baseline."""

from memometer.budget import show
from memometer.memory import BudgetTooSmall, Memory, Recall, State


class FullContext(Memory[State]):
    """Shows every turn. Raises BudgetTooSmall instead of truncating the conversation."""

    shows_everything = True
    recall_only_computes = True

    def recall(self, state: State, question: str, budget_tokens: int) -> Recall:
        recall = show(state, range(len(state.turns)), self.count, form=self.form)
        if recall.tokens > budget_tokens:
            raise BudgetTooSmall(f"full_context needs {recall.tokens:,} tokens, the budget is {budget_tokens:,}")
        return recall
