"""Splits are by conversation; nothing of one part is in another."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locomo import split_data
from locomo.dataset import Question
from locomo.split_data import leakage
from locomo.splits import CONVERSATIONS, SPLITS, check, leave_one_out
from memometer.benchmarks.protocol import DataError
from memometer.benchmarks.sampling import sample


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("default", {"train": 563, "validation": 308, "test": 669}),
        ("memory-r1", {"train": 152, "validation": 81, "test": 1307}),
    ],
)
def test_parts_have_their_published_sizes(locomo: Any, name: str, sizes: dict[str, int]) -> None:
    for part_name, size in sizes.items():
        questions = [q for c in locomo.part(f"{name}:{part_name}") for q in c.questions if q.category != "5"]
        assert len(questions) == size


def test_the_default_is_nested_in_memory_r1s() -> None:
    assert set(SPLITS["default"]["test"]) <= set(SPLITS["memory-r1"]["test"])


def test_a_run_looks_at_the_test_part_of_its_split(locomo: Any) -> None:
    assert [c.id for c in locomo.held_out("test")] == list(SPLITS["default"]["test"])
    assert locomo.held_out("all") == locomo.held_out("default:test")
    assert len(locomo.held_out("memory-r1:all")) == 8
    assert locomo.held_out("train") == locomo.held_out("memory-r1:validation") == ()
    for wrong in ("tests", "r1:test", ""):
        with pytest.raises(DataError, match="allowed are train, validation, test"):
            locomo.part(wrong)


def test_every_split_covers_every_conversation_once() -> None:
    for split in [*SPLITS.values(), *leave_one_out()]:
        check(split)
        assert sorted(id for ids in split.values() for id in ids) == sorted(CONVERSATIONS)


def test_overlap_and_strangers_are_errors() -> None:
    with pytest.raises(DataError, match="conv-26 occurs twice"):
        check({"train": ("conv-26",), "test": ("conv-26", "conv-30")})
    with pytest.raises(DataError, match="names conv-1"):
        check({"train": ("conv-1",)})


def test_a_split_by_question_would_leak(locomo: Any) -> None:
    leak = leakage(locomo)
    assert round(leak["evidence turn"], 2) == 0.62
    assert round(leak["session"], 2) == 0.99
    assert round(leak["adversarial evidence"], 2) == 0.99


@pytest.mark.parametrize("name", [*SPLITS, "leave-one-out"])
def test_the_written_files_hold_ids_and_are_what_the_command_writes(
    locomo: Any, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("locomo.dataset.DATA", tmp_path)
    assert split_data.main(["--split", name, "--data", str(locomo.path)]) == 0
    assert "would leak: 62%" in capsys.readouterr().out
    written = (tmp_path / "splits" / f"{name}.json").read_text()
    flat = json.loads(written)
    expected = leave_one_out() if name == "leave-one-out" else SPLITS[name]
    assert flat == json.loads(json.dumps(expected))
    folds = flat if isinstance(flat, list) else [flat]
    assert all(id in CONVERSATIONS for fold in folds for ids in fold.values() for id in ids)


questions = st.lists(st.integers(1, 5), min_size=1, max_size=60).map(
    lambda categories: [Question("conv-26", i, "?", str(c), "x", ()) for i, c in enumerate(categories)]
)


@given(pool=questions, n=st.integers(1, 70), seed=st.integers(0, 5))
def test_a_sample_is_stratified_seeded_and_in_order(pool: list[Question], n: int, seed: int) -> None:
    drawn = sample(pool, n, seed=seed)
    assert drawn == sample(pool, n, seed=seed)
    assert len(drawn) == min(n, len(pool))
    assert list(drawn) == sorted(drawn, key=lambda q: q.index)
    have, want = Counter(q.category for q in drawn), Counter(q.category for q in pool)
    assert all(abs(have[c] - len(drawn) * want[c] / len(pool)) < 1 for c in want)
