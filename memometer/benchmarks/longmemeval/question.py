"""LongMemEval's question types, and its questions with the published recall@k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memometer.benchmarks.own.question import Question as OwnQuestion
from memometer.benchmarks.protocol import FREE

LICENCE = (
    "LongMemEval is licensed MIT (its repository and data card); parts of its chats come from ShareGPT and UltraChat."
)
TYPES = (
    "single-session-user",
    "single-session-assistant",
    "single-session-preference",
    "multi-session",
    "knowledge-update",
    "temporal-reasoning",
)
CUTOFFS = (1, 3, 5, 10, 30, 50)
"""The k of the published recall@k."""


@dataclass(frozen=True, slots=True)
class Question(OwnQuestion):
    """A question with its date and its evidence sessions.

    Attributes:
        asked_on: The date of the question, as published.
        answer_sessions: Ids of the evidence sessions.
    """

    asked_on: str = ""
    answer_sessions: tuple[str, ...] = ()

    def options(self, order: str) -> str:
        """The date of the question, which many answers need. It follows the question, and no memory sees it."""
        return f"The question is asked on {self.asked_on}." if order == FREE and self.asked_on else ""

    def session_of(self, turn_id: str) -> str:
        """The session of a turn: the id without its last part."""
        return turn_id.rpartition(":")[0]

    def ranking_metrics(self, ranked: Sequence[str]) -> Mapping[str, float]:
        """The published recall@k of turns and sessions: any or all of the evidence among the k best."""
        if not self.answerable:
            return {}
        levels = {
            "turn": (set(self.evidence), list(ranked)),
            "session": (set(self.answer_sessions), list(dict.fromkeys(map(self.session_of, ranked)))),
        }
        return {
            f"{level} recall_{rule.__name__}@{k}": float(rule(id in best[:k] for id in evidence))
            for level, (evidence, best) in levels.items()
            if evidence
            for rule in (any, all)
            for k in CUTOFFS
        }
