"""A memory system of your own: define it, register it, and measure its evidence recall on the built-in sample.

python examples/own_memory.py
"""

import sys

from locomo.dataset import SAMPLE
from memometer.budget import pack
from memometer.cli import main
from memometer.memory import Memory, Recall, State
from memometer.systems import SYSTEMS


class Longest(Memory[State]):
    """Show the longest turns first, for any question."""

    def recall(self, state: State, question: str, budget_tokens: int) -> Recall:
        ranking = sorted(range(len(state.turns)), key=lambda i: -state.line_tokens[i])
        return pack(state, ranking, budget_tokens, self.count)


if __name__ == "__main__":
    SYSTEMS["longest"] = "__main__:Longest"
    options = "--recall-only --no-mlflow --split all --budgets 128,256 --systems longest,recent,bm25"
    sys.exit(main(["eval", *options.split(), "--data", str(SAMPLE)]))
