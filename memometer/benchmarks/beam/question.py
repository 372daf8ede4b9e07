"""BEAM's abilities, and its questions with their rubrics."""

from __future__ import annotations

from dataclasses import dataclass

from memometer.benchmarks.own.question import Question as OwnQuestion

LICENCE = "BEAM's repository states no licence: use it where you may, and do not redistribute it."
ABILITIES = (
    "abstention",
    "contradiction_resolution",
    "event_ordering",
    "information_extraction",
    "instruction_following",
    "knowledge_update",
    "multi_session_reasoning",
    "preference_following",
    "summarization",
    "temporal_reasoning",
)
CATEGORIES = {ability: ability.replace("_", " ") for ability in ABILITIES}


@dataclass(frozen=True, slots=True)
class Question(OwnQuestion):
    """A question with its rubric: what an answer should contain, item by item."""

    rubric: tuple[str, ...] = ()
