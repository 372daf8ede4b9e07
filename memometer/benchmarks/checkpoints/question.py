"""A question at a checkpoint: the texts that an answer needs, and those that it must not contain."""

from __future__ import annotations

from dataclasses import dataclass

from memometer.benchmarks import protocol


@dataclass(frozen=True, slots=True)
class Question(protocol.Question):
    """A question at a checkpoint.

    Attributes:
        name: Its id in the file.
        group: The group of its measures, such as an attack or an age; empty without groups.
        needed: Texts or regular expressions that what is shown must contain.
        leaks: Texts or regular expressions that what is shown must not contain.
        sessions: The ids of the turns of each session that states the answer; one of its turns must be shown.
    """

    name: str = ""
    group: str = ""
    needed: tuple[str, ...] = ()
    leaks: tuple[str, ...] = ()
    sessions: tuple[tuple[str, ...], ...] = ()
