"""Questions about own conversations: their own ids, and several gold answers."""

from __future__ import annotations

from dataclasses import dataclass

from memometer.benchmarks import protocol
from memometer.benchmarks.metrics import abstains, token_f1


@dataclass(frozen=True, slots=True)
class Question(protocol.Question):
    """A question with the id of its file.

    Attributes:
        name: The id in the file; empty for the position.
        answers: The gold answers. `gold` joins them for a judge.
    """

    name: str = ""
    answers: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """`conversation#id`. A `#` in the question's own id becomes `%23`, so that the last `#` separates the two."""
        return f"{self.conversation}#{self.name.replace('#', '%23') or self.index}"

    def score(self, answer: str, order: str = protocol.FREE) -> float:
        """Token F1 with the closest gold answer, or 1.0 for a correct abstention."""
        if self.gold is None:
            return float(abstains(answer))
        return max(token_f1(answer, gold) for gold in self.answers or (self.gold,))
