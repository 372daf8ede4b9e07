"""Simple Predict: no memory at all, just the newest turns that fit the budget."""

from memory_system import Memory, Recall, State, pack


class Simple(Memory[State]):
    """The newest turns that fit, whatever is asked."""

    def recall(self, state: State, question: str, budget_tokens: int) -> Recall:
        return pack(state, reversed(range(len(state.turns))), budget_tokens, self.count)
