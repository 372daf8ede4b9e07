"""The questions of the benchmark: what must be shown, what must not, and the measure that they belong to."""

from __future__ import annotations

from dataclasses import dataclass

from memometer.benchmarks import protocol

LICENCE = "MIT"

AT_AGE, AT_ONCE = "recall at age", "recall at once, before it is ready"
"""Measures of facts that are asked for at several ages."""

RELOADED = "after export and import"
"""The group of questions after the memory was saved and loaded."""

CATEGORIES = {
    "ages": "recall at every age",
    "corrections": "corrected values",
    "deletion": "deleted facts",
    "people": "several people",
    "poison": "text of third parties",
}


@dataclass(frozen=True, slots=True)
class Mark:
    """A turn, and a text that is in no other turn of its kind, by which a fact without a source is recognized."""

    turn_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Question(protocol.Question):
    """A question of one measure.

    Attributes:
        measure: Name of the measure.
        group: The group within the measure, such as an age in turns; empty without groups.
        fact: Key of the fact in its conversation. Several questions ask for it at several ages.
        wanted: The marks of the turns that must be shown.
        unwanted: The marks of the turns that must not be shown, or not above the wanted ones.
        label: The words that name the source of the unwanted text.
    """

    measure: str = ""
    group: str = ""
    fact: str = ""
    wanted: tuple[Mark, ...] = ()
    unwanted: tuple[Mark, ...] = ()
    label: str = ""
