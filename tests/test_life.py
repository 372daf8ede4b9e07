"""The benchmark of a memory's life: planted faults are found by their numbers, and by no others."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from memometer.benchmarks.life import generate
from memometer.benchmarks.life.generate import content, conversation
from memometer.benchmarks.life.measures import measures
from memometer.benchmarks.protocol import DataError
from memometer.benchmarks.shown import Answered, Measure, Part, Shown
from memometer.harness.timeline import Timeline, moments
from memometer.report.own_measures import summary
from memometer.systems.in_process import InProcess
from memometer.systems.plugin_memory import PluginMemory
from memometer.token_counters import Utf8Bytes
from tests import commands
from tests import planted_memories as planted

TURNS = 520
"""The age of 1,000 turns is left out, which halves the time."""

CONVERSATIONS = tuple(conversation(f"life-test-{n}", TURNS) for n in range(2))
BUDGET = 4_000
"""In bytes."""


class _Asked:
    def __init__(self, question: Any) -> None:
        self.question = question


@cache
def measured(kind: type[planted.Sound]) -> dict[tuple[str, str], Measure]:
    """The measures of a planted system, without a run folder."""
    answered, steps = [], []
    for talk in CONVERSATIONS:
        memory = PluginMemory(
            kind.__name__, InProcess("", {}, {}, build=kind), largest_budget=BUDGET, count=Utf8Bytes()
        )
        memory.start()
        timeline = Timeline(memory, talk)
        for moment, due in moments(talk, [_Asked(question) for question in talk.questions]):
            steps.append({"conversation": talk.id, **timeline.advance(moment)})
            for task in due:
                asked = memory.asked_by(task.question.asker)
                recall = asked.checked_recall(timeline.state, task.question.text, BUDGET)
                parts = tuple(Part(item.text or "", item.turn_ids or ()) for item in recall.items)
                answered.append(Answered(task.question, Shown(parts), recall.tokens, 0.0))
        memory.stop()
    return {(one.name, one.group): one for one in measures(answered, steps) if one.unit == "share"}


FAULTS = {
    planted.ForgetsAtAge100: {"recall at age 100", "recall at the worst age"},
    planted.KeepsStaleValues: {"current value found", "superseded value", "the same after the old value"},
    planted.ResurrectsAfterRetelling: {"deleted by forget, still shown after"},
    planted.ShowsPrivateTurns: {"private words shown to others"},
    planted.HidesWhileSettling: {"recall at once", "recall while it settles", "facts with a hole"},
    planted.ObeysPoison: {"poison", "poisoned fact found"},
}
"""Planted system -> the beginnings of the measures that may differ from the sound system's; at least one must."""


@pytest.mark.parametrize("kind", FAULTS)
def test_a_planted_fault_is_found_by_its_number_and_by_no_other(kind: type[planted.Sound]) -> None:
    sound, faulty = measured(planted.Sound), measured(kind)
    assert sound.keys() == faulty.keys()
    moved = set()
    for key, one in sound.items():
        before, after = summary(one), summary(faulty[key])
        worse = after["mean"] > before["interval"][1] if one.low_is_better else after["mean"] < before["interval"][0]
        if worse:
            moved.add(" ".join(key).strip())
    assert moved
    assert {name for name in moved if not any(name.startswith(start) for start in FAULTS[kind])} == set()


def test_the_sound_system_does_all_that_needs_no_understanding() -> None:
    found = {" ".join(key).strip(): summary(one)["mean"] for key, one in measured(planted.Sound).items()}
    for name in ("recall at the worst age", "recall while it settles", "survivors found at once"):
        assert found[name] == 1.0
    for name in ("private words shown to others", "deleted by forget, still shown after consolidation"):
        assert found[name] == 0.0
    assert found["deleted on request, still shown at once"] == 1.0


def test_the_same_seed_gives_the_same_bytes() -> None:
    again = tuple(conversation(f"life-test-{n}", TURNS) for n in range(2))
    digest = hashlib.sha256(content(again)).hexdigest()
    assert digest == hashlib.sha256(content(CONVERSATIONS)).hexdigest()
    assert (
        digest != hashlib.sha256(content(tuple(conversation(f"life-other-{n}", TURNS) for n in range(2)))).hexdigest()
    )


def test_every_question_but_those_of_ages_comes_within_ninety_turns_of_its_evidence() -> None:
    for talk in CONVERSATIONS:
        position = {turn.id: number for number, turn in enumerate(talk.turns)}
        for question in talk.questions:
            for mark in (*question.wanted, *question.unwanted):  # type: ignore[attr-defined]
                assert question.moment
                distance = question.moment.after - 1 - position[mark.turn_id]
                assert 0 <= distance <= (1_000 if question.category == "ages" else 90)


def test_a_mark_is_in_the_text_of_its_turn_and_of_no_other_of_its_kind() -> None:
    for talk in CONVERSATIONS:
        text = {turn.id: turn.text for turn in talk.turns}
        for question in talk.questions:
            for mark in question.wanted:  # type: ignore[attr-defined]
                assert mark.text in text[mark.turn_id]


def test_a_run_by_name_has_measures_comparisons_and_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(generate.SIZES, "1k", (2, TURNS))
    words = f"--benchmark life --recall-only --num-test 60 --systems recent,bm25 --no-mlflow --run-dir {tmp_path}/run"
    assert commands.evaluate(words.split()) == 0
    results = json.loads((tmp_path / "run/results.json").read_text())["own_measures"]
    assert {value["budget"] for value in results["values"]} == {0, 1024}
    assert all(value["n"] > 0 for value in results["values"] if value["mean"] is not None)
    assert {(c["a"]["system"], c["b"]["system"]) for c in results["comparisons"]} == {("recent", "bm25")}
    assert "Measures at 1,024 tokens" in (tmp_path / "run/table.txt").read_text()
    steps = [json.loads(line) for line in (tmp_path / "run/ingest.jsonl").read_text().splitlines()]
    assert sum(step.get("written", 0) for step in steps if step["system"] == "recent") <= 2 * TURNS


def test_an_unknown_size_is_answered_with_the_known_ones() -> None:
    with pytest.raises(DataError, match="'2k'.*1k, 10k, 100k"):
        generate.dataset("2k")
