"""The newest turns: the baseline Simple Predict, and the memory of a plain chat buffer."""

from memometer.budget import pack
from memometer.memory import Memory, Recall, State


class Recent(Memory[State]):
    """Shows the newest turns that fit, independent of the question."""

    recall_only_computes = True

    def recall(self, state: State, question: str, budget_tokens: int) -> Recall:
        return pack(state, reversed(range(len(state.turns))), budget_tokens, self.count, form=self.form)
