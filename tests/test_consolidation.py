"""Which turns a consolidation merges and forgets, and that it can be undone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from memometer import cli
from memometer.serve.new_turns import NewTurn
from memometer.serve.tenants import TenantMemories
from memometer.store import open_store
from memometer.store.episode import Episode
from memometer.store.hybrid_scoring import DAY, SEED
from memometer.store.quantise import quantiser
from tests.conftest import HashEncoder

DIFFERENT = [
    ("Ann: my phone is 555-0134", "Ann: my phone is 555-0199"),
    ("Ann: the flight leaves at 9:40", "Ann: the flight leaves at 9:45"),
    ("Ann: I have two cats", "Ann: I have three cats"),
    ("Ann: I met Oskar at the lake", "Ann: I met Lena at the lake"),
    ("Ann: I like the kayak", "Bob: I like the kayak"),
    ("Ann: the doctor is on 5 May", "Ann: the doctor is on 6 May"),
    ("Ann: I saw the doctor yesterday", "Ann: I saw the doctor today"),
    ("Ann: I am allergic to nuts", "Ann: I am not allergic to nuts"),
    ("Ann: I can swim", "Ann: I can't swim"),
    ("李: 我住在北京", "李: 我住在上海"),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_facts_are_not_merged(one: str, other: str) -> None:
    with open_store("memory:") as store:
        made = [Episode("1", one, 0.0), Episode("2", other, 1.0), Episode("3", one + " ", 2.0)]
        store.store_episodes("agent", made, np.ones((3, 64)))
        merged = store.consolidate("agent", at=3.0, weights=SEED).merged
        assert {id for first, others in merged.items() for id in (first, *others)} == {"1", "3"}


def test_words_of_a_day_are_other_facts_on_another_day() -> None:
    with open_store("memory:") as store:
        made = [Episode(f"{day}", "Ann: I ran today", day * DAY) for day in range(2)]
        store.store_episodes("agent", made, np.ones((2, 64)))
        assert store.consolidate("agent", at=3.0).merged == {}


@pytest.mark.parametrize("bits", [2, 4])
def test_the_threshold_is_in_the_cosine_of_full_vectors(bits: int) -> None:
    draw = np.random.default_rng(0)
    kind = quantiser(384, bits)
    for cosine in (0.5, 0.85, 0.95):
        pairs = draw.normal(size=(2, 300, 384))
        first = pairs[0] / np.linalg.norm(pairs[0], axis=1, keepdims=True)
        rest = pairs[1] - (pairs[1] * first).sum(1, keepdims=True) * first
        second = cosine * first + np.sqrt(1 - cosine**2) * rest / np.linalg.norm(rest, axis=1, keepdims=True)
        a, b = kind.levels(kind.encode(first)), kind.levels(kind.encode(second))
        measured = ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean()
        assert kind.code_cosine(cosine) == pytest.approx(measured, abs=0.01)


def test_a_dry_run_changes_nothing_and_a_consolidation_is_undone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/memory.db"
    with open_store(url) as store:
        made = [Episode("1", "a kayak", 0.0), Episode("2", "a blue kayak", 1.0), Episode("old", "a lamp", 0.0)]
        store.store_episodes("agent", made, np.array([[1.0, 0] * 8, [1.0, 0] * 8, [0, 1.0] * 8]))
        before = list(store.scan("agent"))
    command = ["store", "consolidate", url, "--weights", "seed", "--at", str(100 * DAY)]
    assert cli.main([*command, "--dry-run"]) == 0
    assert "3 forgotten" in capsys.readouterr().out
    assert cli.main(["store", "consolidate", url, "--dry-run"]) == 0
    assert "2 <- 1" in capsys.readouterr().out
    with open_store(url) as store:
        assert list(store.scan("agent")) == before
    assert cli.main(command) == 0
    with open_store(url) as store:
        assert all(episode.archived for episode in store.scan("agent"))
    assert cli.main(["store", "consolidate", url, "--undo"]) == 0
    assert "3 restored" in capsys.readouterr().out
    with open_store(url) as store:
        assert not [episode for episode in store.scan("agent") if episode.archived]
        assert store.check() == []
    assert cli.main(["store", "consolidate", url, "--undo"]) == 0
    assert "0 restored" in capsys.readouterr().out


def test_recalled_turns_count_as_used_and_are_not_forgotten(tmp_path: Path) -> None:
    memories = TenantMemories(f"sqlite:///{tmp_path}/memory.db", encoder=HashEncoder(), now=lambda: 100 * DAY)
    memories.registry.create("ada", "diary")
    old = [NewTurn(text, id=text, said_at=None) for text in ("kayak", "lamp")]
    entry = memories.registry.find("ada", "diary")
    memories.store.store_episodes(entry.scope, [Episode(turn.text, f"user: {turn.text}", 0.0) for turn in old])
    memories.recall("ada", "diary", "kayak", budget_tokens=1000)
    memories.retrieve("ada", "diary", "kayak", k=1)
    shown = memories.store.get(entry.scope, ["kayak", "lamp"])
    assert [episode.uses for episode in shown] == [0, 0], "not on the hot path"
    done = memories.consolidate("ada", "diary", weights=SEED, dry_run=True)
    assert [episode.uses for episode in memories.store.get(entry.scope, ["kayak", "lamp"])] == [2, 1]
    assert done.forgotten == ("lamp",)
    memories.retrieve("ada", "diary", "lamp", k=1)
    memories.close()
    with open_store(f"sqlite:///{tmp_path}/memory.db") as store:
        assert store.get(entry.scope, ["lamp"])[0].uses == 2
