"""Random turns: the control of every search. A system that finds no more evidence than this one does not search."""

import random

from memometer.budget import pack
from memometer.memory import Memory, Recall, State


class RandomTurns(Memory[State]):
    """Shows random turns that fit, another draw for each question, and the same draw each time it is asked."""

    def recall(self, state: State, question: str, budget_tokens: int) -> Recall:
        order = list(range(len(state.turns)))
        random.Random(f"{len(order)}/{question}").shuffle(order)
        return pack(state, order, budget_tokens, self.count, form=self.form)
