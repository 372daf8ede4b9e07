"""REALTALK's categories, and its questions with the published score."""

from __future__ import annotations

from dataclasses import dataclass

from memometer.benchmarks import protocol
from memometer.benchmarks.metrics import abstains, parts_f1, token_f1
from memometer.benchmarks.own.question import Question as OwnQuestion

LICENCE = "REALTALK's repository states no licence: use it where you may, and do not redistribute it."
CATEGORIES = {"1": "multi-hop", "2": "temporal", "3": "commonsense"}


@dataclass(frozen=True, slots=True)
class Question(OwnQuestion):
    """A question with REALTALK's published score, which is LOCOMO's."""

    @property
    def gold_is_list(self) -> bool:
        """True in category 1."""
        return self.category == "1"

    @property
    def reference(self) -> str:
        """The gold answer; in category 3 its part before the first semicolon."""
        gold = self.gold or ""
        return gold.split(";")[0].strip() if self.category == "3" else gold

    def session_of(self, turn_id: str) -> str:
        """The day that a turn's id names: `D3` for `D3:4`."""
        return turn_id.partition(":")[0]

    def score(self, answer: str, order: str = protocol.FREE) -> float:
        """The published F1 of an answer: over lists in category 1."""
        if self.gold is None:
            return float(abstains(answer))
        return parts_f1(answer, self.gold) if self.category == "1" else token_f1(answer, self.reference)
