"""The episodic memory on its stores, and the codebook."""

from __future__ import annotations

import threading
import tracemalloc
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memometer.memory import Memory, Turn
from memometer.store import open_store, opened
from memometer.store.consolidation import IdleConsolidation
from memometer.store.episode import Episode
from memometer.store.hybrid_scoring import DAY, DEFAULT, Weights
from memometer.systems.codebook import Codes
from memometer.systems.episodic import Episodic, EpisodicSeed
from tests.conftest import HashEncoder

START = datetime(2024, 1, 1)


def talk(*lines: str, sessions: int = 2) -> list[Turn]:
    return [
        Turn(f"D{1 + n % sessions}:{n}", "Nadia", line, 1 + n % sessions, START + timedelta(days=7 * (n % sessions)))
        for n, line in enumerate(lines)
    ]


def test_a_store_recalls_what_the_state_alone_recalls(tmp_path: Path, sample: Any) -> None:
    conversation = sample.conversations[0]
    alone = Episodic(encoder=HashEncoder())
    stored = Episodic(encoder=HashEncoder(), memory_url=f"sqlite:///{tmp_path}/memory.db")
    states = alone.new(), stored.open("agent")
    for memory, state in zip((alone, stored), states, strict=True):
        for session in conversation.sessions:
            memory.observe(state, session.turns)
    for again in (states[1], stored.open("agent")):
        for question in conversation.questions:
            for budget in (60, 400, 5000):
                expected = alone.recall(states[0], question.text, budget)
                assert stored.recall(again, question.text, budget) == expected
    stored.observe(stored.open("agent"), conversation.turns)
    assert stored.store(states[1]).size("agent").episodes == len(conversation.turns), "observing again adds nothing"
    assert stored.recall(stored.open("another"), "anything", 100).text == ""
    assert stored.new().scope != stored.new().scope
    opened(str(stored.memory_url)).close()


def test_what_is_shown_is_what_every_memory_shows(sample: Any) -> None:
    conversation = sample.conversations[0]
    memory = Episodic(encoder=HashEncoder())
    state = memory.new()
    memory.observe(state, conversation.turns)
    everything = memory.recall(state, "accordion", 100_000)
    assert everything.turn_ids == tuple(turn.id for turn in conversation.turns)
    plain: Memory[Any] = Memory()
    shown = plain.new()
    plain.observe(shown, conversation.turns)
    assert everything.text.replace(conversation.turns[0].header, "", 1).startswith(conversation.turns[0].line)
    assert sum(shown.line_tokens) < everything.tokens


def test_uses_are_observed_and_never_counted_by_recall() -> None:
    memory = Episodic(encoder=HashEncoder(), weights=Weights(lexical=0, dense=0, neighbours=0, use=1))
    state = memory.new()
    memory.observe(state, talk("a lamp", "a kayak", "a bowl"))
    recall = memory.recall(state, "kayak", 1000)
    assert [episode.uses for episode in state.store.scan("")] == [0, 0, 0]
    memory.observe_uses(state, recall.turn_ids[1:2])
    assert memory.recall(state, "kayak", 1000).ranked[0] == recall.turn_ids[1]


def test_recency_is_measured_from_the_time_that_is_asked_at() -> None:
    memory = Episodic(
        encoder=HashEncoder(), weights=Weights(lexical=0, dense=0, neighbours=0, recency=1, recency_days=1)
    )
    state = memory.new()
    memory.observe(state, talk("a lamp", "a kayak"))
    newest = (START + timedelta(days=7) - datetime(1970, 1, 1)).total_seconds()
    assert memory.recall(state, "kayak", 1000).ranked == ("D2:1", "D1:0")
    assert memory.recall(state, "kayak", 1000, at=newest) == memory.recall(state, "kayak", 1000)
    assert memory.recall(state, "kayak", 1000, at=newest - 30 * DAY).ranked == (), "both are later"


def test_consolidation_shows_one_of_near_duplicates() -> None:
    memory = Episodic(encoder=HashEncoder())
    state = memory.new()
    memory.observe(state, talk("a blue kayak", "a bowl", "a blue kayak"))
    assert len(memory.recall(state, "kayak", 1000).turn_ids) == 3
    assert memory.consolidate(state, at=0.0).merged == {"D1:0": ("D1:2",)}
    assert len(memory.recall(state, "kayak", 1000).turn_ids) == 2


def test_the_seed_forgets_most_of_a_year() -> None:
    """Why its weights are not the default."""
    seed, default = EpisodicSeed(encoder=HashEncoder()), Episodic(encoder=HashEncoder())
    for memory, kept in ((seed, 1), (default, 2)):
        state = memory.new()
        memory.observe(state, talk("I sold my kayak in Porto", "a bowl"))
        late = (START - datetime(1970, 1, 1)).total_seconds() + 33 * DAY  # 26 days after the second session
        memory.consolidate(state, at=late)
        assert len(memory.recall(state, "Where was the kayak sold?", 1000).turn_ids) == kept


def test_idle_time_consolidates_what_has_changed(tmp_path: Path) -> None:
    with open_store(f"sqlite:///{tmp_path}/memory.db") as store:
        for scope in ("one", "two"):
            twice = [Episode("1", "a blue kayak", 0.0), Episode("2", "a blue kayak!", 0.0)]
            store.store_episodes(scope, twice, np.ones((2, 8)))
        done = threading.Event()
        with IdleConsolidation(store, after_seconds=0.05, now=lambda: 0.0, weights=DEFAULT, done=done.set) as idle:
            idle.touch("one")
            assert done.wait(20)
        assert store.size("one").archived == 1
        assert store.size("two").archived == 0, "nobody touched it"


def test_a_failure_in_idle_time_is_told_and_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store(f"sqlite:///{tmp_path}/memory.db")
    store.close()
    done = threading.Event()
    with IdleConsolidation(store, after_seconds=0.01, now=lambda: 0.0, done=done.set) as idle:
        idle.touch("one")
        assert done.wait(20)
        done.clear()
        idle.touch("one")
        assert done.wait(20)
    assert "'one'" in capsys.readouterr().err


def test_a_text_that_was_stored_very_often_is_merged_in_little_memory() -> None:
    store = open_store("memory:")
    store.store_episodes(
        "agent", [Episode(f"{n:04}", "All well.", float(n)) for n in range(2500)], np.tile(np.ones(8), (2500, 1))
    )
    tracemalloc.start()
    merged = store.consolidate("agent", at=1.0).merged
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert {id: len(others) for id, others in merged.items()} == {"0000": 2499}
    assert peak < 60e6


# ---------------------------------------------------------------- the codebook


def unit(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def test_a_codebook_takes_in_appends_and_passes_over() -> None:
    codes = Codes(feature_dim=2, short_max=2)
    codes.add(unit(1, 0), time=0.0)
    codes.add(unit(1, 0.1), time=1000.0)  # cosine 0.995: taken in
    assert len(codes.long) == 1
    expected = 0.9 * unit(1, 0) + 0.1 * unit(1, 0.1) / np.linalg.norm(unit(1, 0.1))
    assert np.allclose(codes.dump()["long_vectors"][0], expected / np.linalg.norm(expected))
    assert codes.long[0].energy == pytest.approx(np.exp(-1) + 1), "faded, then more"
    codes.add(unit(1, 1), time=1000.0)  # 0.76: between the thresholds
    assert len(codes.long) == 1
    codes.add(unit(-1, 1), time=1000.0)  # new
    assert [entry.of for entry in codes.long] == [0, 3]
    assert [entry.of for entry in codes.short] == [2, 3], "the ring holds two"
    stats = codes.energy_stats(time=2000.0)
    assert stats["count"] == 2
    assert stats["max"] == pytest.approx((np.exp(-1) + 1) * np.exp(-1))
    assert stats["sum"] == pytest.approx(stats["max"] + np.exp(-1))


def test_the_weakest_code_gives_way() -> None:
    codes = Codes(feature_dim=3, long_max=2)
    codes.add(unit(1, 0, 0), time=0.0, energy=1.0)
    codes.add(unit(0, 1, 0), time=0.0, energy=5.0)
    codes.add(unit(0, 0, 1), time=0.0)
    assert [entry.of for entry in codes.long] == [1, 2]


def test_the_goal_moves_less_each_time() -> None:
    codes = Codes(feature_dim=2, goal_dim=3)
    for vector in ((3, 0, 0), (0, 3, 0), (0, 0, 3)):
        codes.aim(unit(*vector))
    assert np.allclose(codes.dump()["goal"], [1, 1, 1])
    codes.add(unit(1, 0), time=0.0)
    assert codes.short[0].goal == codes.goal


def test_a_codebook_may_have_no_ring() -> None:
    codes = Codes(feature_dim=2, short_max=0)
    codes.add(unit(1, 0), time=0.0)
    assert (len(codes.short), len(codes.long)) == (0, 1)


def test_a_codebook_takes_in_each_vector_once_beside_episodes_without_any() -> None:
    store = open_store("memory:")
    store.store_episode("team", Episode("0", "no vector", 0.0))
    store.store_episode("team", Episode("1", "x", 1.0), unit(1, 0))
    codes = Codes(feature_dim=2)
    for _ in range(2):
        codes.catch_up(store, "team")
    assert codes.added == 1


def test_agents_share_a_codebook_through_the_store(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(60, 32))
    one, two = (open_store(f"sqlite:///{tmp_path}/memory.db") for _ in range(2))
    mine, yours = Codes(feature_dim=32), Codes(feature_dim=32)
    for n, vector in enumerate(vectors):
        (one, two)[n % 2].store_episode("team", Episode(str(n), "x", float(n)), vector)
        if n % 7 == 0:
            mine.catch_up(one, "team")
    mine.catch_up(one, "team")
    yours.catch_up(two, "team")
    assert mine == yours
    assert mine.added == 60
    one.delete("team", ["17"])  # and one more, so that as many are there as before
    one.store_episode("team", Episode("60", "x", 60.0), vectors[17])
    mine.catch_up(one, "team")
    (fresh := Codes(feature_dim=32)).catch_up(two, "team")
    assert mine == fresh != yours
    one.close()
    two.close()
