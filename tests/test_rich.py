"""Rich mode: how facts are read, how they supersede each other, and what they do to the ranking."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import numpy as np
import pytest

from memometer.systems.adaptive import AdaptiveMemory
from memometer.systems.fact_augmented import Fact, FactAugmented, add, parse, world_time
from tests.test_memories import TURNS, Writer, observe

SAID = datetime(2024, 3, 8, 12)


def fact(value: str, attribute: str = "home", subject: str = "Eva", *, said: datetime = SAID) -> Fact:
    return Fact(subject, attribute, value, (0,), said, *world_time(value, said.date()))


def held(*facts: Fact) -> list[Fact]:
    kept: list[Fact] = []
    for new in facts:
        add(kept, new)
    return kept


LATER = datetime(2024, 6, 1)


def test_a_newer_fact_supersedes_and_deletes_nothing() -> None:
    old, new = held(fact("Oslo", "home town"), fact("Bergen", "Home towns", "eva", said=LATER))
    assert (old.value, old.superseded_by, old.valid_to) == ("Oslo", 1, date(2024, 6, 1))
    assert (new.superseded_by, new.valid_to, new.said_at) == (None, None, LATER)


@pytest.mark.parametrize(
    "other",
    [
        fact("Oslo", said=LATER),
        fact("Bergen", subject="Ben", said=LATER),
        fact("Bergen", "name of the home football club", said=LATER),
        fact("Bergen", "", said=LATER),
        fact("Bergen"),
    ],
    ids=["said again", "another subject", "another attribute", "no attribute", "of one day"],
)
def test_what_does_not_contradict_holds_beside_it(other: Fact) -> None:
    assert [kept.superseded_by for kept in held(fact("Oslo"), other)] == [None, None]


def test_newer_is_by_the_world_and_not_by_the_telling() -> None:
    new, old = held(fact("Bergen"), fact("Oslo in 2019", said=LATER))
    assert new.superseded_by is None
    assert (old.superseded_by, old.valid_from, old.valid_to) == (0, date(2019, 1, 1), date(2024, 3, 8))


def test_world_time_is_in_the_value_or_the_day_of_telling() -> None:
    said = SAID.date()
    assert world_time("nurse since 2019", said) == (date(2019, 1, 1), None)
    assert world_time("moved yesterday", said) == (date(2024, 3, 7), None)
    assert world_time("Oslo from 2019 until 2021", said) == (date(2019, 1, 1), date(2021, 12, 31))
    assert world_time("Oslo, until 3 May 2021", said) == (date(2021, 5, 3), date(2021, 5, 3))
    assert world_time("Oslo", said) == (said, None)


def test_messy_lines_are_read_or_dropped() -> None:
    lines = ["| number | person | attribute | value |", "|---|---|---|---|", "3: Priya | job | nurse since 2019",
             "| 2 | Ben | home | Oslo |", "Lines 1, 3-99: Eva | pet | cat | grey", "(4) Ben | **tired**", "2 | Ben",
             "Ben | home | Oslo", "0 | Ben | home | Oslo", "17: Ben | home | Oslo", "2 | Ben | home | Oslo", "|", "9-",
             "1 | Gina", "no fact at all", "4 | | |"]  # fmt: skip
    assert parse(lines, turns=4) == [
        ((3,), "Priya", "job", "nurse since 2019"),
        ((2,), "Ben", "home", "Oslo"),
        ((1, 3, 4), "Eva", "pet", "cat, grey"),
        ((4,), "Ben", "", "tired"),
    ]


def told(*replies: str) -> tuple[FactAugmented, Any]:
    memory = FactAugmented(fact_weight=3.0)
    return memory, observe(memory, Writer(*replies))


REPLIES = (
    "1 | Ann | hobby | paddling\n2 | Eva | residence | Oslo",
    "2: Eva | residence | Bergen\n9: Ann | is | gone",
    "-",
)


def test_one_call_a_session_and_facts_name_their_turns() -> None:
    writer = Writer(*REPLIES)
    state = observe(FactAugmented(), writer)
    assert len(writer.prompts) == 3
    assert [(f.value, f.positions, f.superseded_by) for f in state.facts] == [
        ("paddling", (0,), None),
        ("Oslo", (1,), 2),
        ("Bergen", (3,), None),
    ]
    assert len(state.turns) == len(TURNS)


def test_a_fact_lifts_the_turn_it_comes_from() -> None:
    memory, state = told(*REPLIES)
    question = "Who enjoys paddling?"  # a word that no turn has
    assert np.argmax(memory.scores(state, question)) == 0
    plain = AdaptiveMemory.scores(memory, state, question)
    lifted = memory.scores(state, question) - plain
    assert lifted[0] > 0
    assert not lifted[1:].any()
    assert state.turns[0].line in memory.recall(state, question, 100).text
    assert "paddling" not in memory.recall(state, question, 1000).text, "turns are what is printed"
    memory.fact_weight = 0.0
    assert np.array_equal(memory.scores(state, question), plain)


def test_a_question_about_now_skips_what_is_superseded() -> None:
    memory, state = told(*REPLIES)

    def lifted(question: str) -> list[int]:
        gain = memory.scores(state, question) - AdaptiveMemory.scores(memory, state, question)
        return np.flatnonzero(gain > 0).tolist()

    assert lifted("What was the residence of Eva?") == [1, 3]
    assert lifted("What is the residence of Eva now?") == [3]


def test_a_lookup_has_facts_too() -> None:
    memory, state = told(*REPLIES)
    assert np.argmax(memory.scores(state, "Anything?", ("paddling",))) == 0
