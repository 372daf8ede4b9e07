"""Facts of a synthetic conversation: plans, stated facts, and threads of facts with one question."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Slots = dict[str, Any]
Key = tuple[int, str, tuple[tuple[str, str], ...]]
"""Speaker, topic and the named slots of a question. Two facts with the same key have the same question."""


@dataclass
class Thread:
    """Facts with the same key, or hints at a trait, stated over several sessions and asked about once.

    Attributes:
        sentence: Template of the question; for a trait, with the answer after ` => `.
        left: Number of facts or hints that are not stated yet.
        shared: The key; None for a trait.
        kinds: The kinds of the stated facts, which are the items of the answer.
        evidence: Ids of the turns that state them.
        hints: Hints at the trait that are not stated yet.
    """

    sentence: str
    left: int
    shared: Key | None = None
    kinds: list[str] = field(default_factory=list)
    evidence: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)


@dataclass
class Plan:
    """A fact that will be stated.

    Attributes:
        speaker: Position of the speaker, 0 or 1.
        topic: The topic; for a hint, the trait.
        fixed: Slots with given values.
        thread: The thread that it belongs to.
        replaces: The kind that it replaces, if it is a newer version of a fact.
    """

    speaker: int
    topic: str
    fixed: Slots = field(default_factory=dict)
    thread: Thread | None = None
    replaces: str | None = None


@dataclass
class Fact:
    """A fact that is being stated.

    Attributes:
        plan: Its plan.
        slots: Values of all slots.
        date: The date that the slot `when` refers to; empty without one.
        stated_in: Slot -> id of the turn that states it.
    """

    plan: Plan
    slots: Slots
    date: str = ""
    stated_in: dict[str, str] = field(default_factory=dict)
