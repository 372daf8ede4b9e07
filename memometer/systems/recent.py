"""The newest turns that fit: Simple Predict, the baseline, and what a plain chat buffer remembers."""

from memometer.budget import pack
from memometer.memory import Memory, Recall, State


class Recent(Memory[State]):
    """The newest turns that fit, whatever is asked."""

    def recall(self, state: State, question: str, budget_tokens: int) -> Recall:
        return pack(state, reversed(range(len(state.turns))), budget_tokens, self.count, form=self.form)
