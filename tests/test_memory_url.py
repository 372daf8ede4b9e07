"""`--memory-url`: systems that keep episodes keep them in a store, and recall what they recall without one."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from locomo.dataset import SAMPLE
from memometer import systems as memories
from memometer.commands import evaluate
from memometer.harness.make_plan import make_plan
from memometer.memory import Turn
from memometer.run.options import OptionError
from memometer.store import open_store, opened
from memometer.store.turn_conversion import episode_of, turn_of
from memometer.systems.codebook import Codebook
from memometer.systems.episodic import Episodic
from tests import commands
from tests.conftest import HashEncoder
from tests.test_memory_contract import build, observed

SYSTEMS = [name for name in memories.SYSTEMS if memories.load(name).takes_memory_url]


@pytest.fixture
def url(tmp_path: Path) -> Any:
    yield (url := f"sqlite:///{tmp_path}/memory.db")
    opened(url).close()


def test_which_systems_keep_episodes() -> None:
    assert SYSTEMS == ["codebook", "episodic", "episodic_seed"]


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_store_changes_no_recall(name: str, url: str, sample: Any) -> None:
    turns = list(sample.conversations[0].turns)
    plain, stored = build(name), memories.load(name)(encoder=HashEncoder(), memory_url=url)
    expected, state = observed(plain, turns), stored.new()
    for turn in turns:
        stored.observe(state, [turn])
        stored.observe(state, [turn])  # known already
    again = memories.load(name)(encoder=HashEncoder(), memory_url=url).open(state.scope)
    for question in sample.questions:
        for budget in (60, 300, 5000):
            recall = plain.recall(expected, question.text, budget)
            assert stored.recall(state, question.text, budget) == recall
            assert stored.recall(again, question.text, budget) == recall
    assert stored.new().scope != state.scope
    assert opened(url).size(state.scope).episodes == len(turns)


def test_a_codebook_is_made_again_from_what_was_said(url: str, sample: Any) -> None:
    turns = list(sample.conversations[0].turns)
    memory = Codebook(encoder=HashEncoder(), memory_url=url, long_max=5)
    state = memory.open("team")
    memory.observe(state, turns[:10])
    memory.observe(again := memory.open("team"), turns[10:])
    whole: Any = observed(Codebook(encoder=HashEncoder(), long_max=5), turns)
    assert again.codes == memory.open("team").codes == whole.codes
    other = Episodic(encoder=HashEncoder(), memory_url=url)
    assert other.recall(other.open("team"), "accordion", 5000).turn_ids == tuple(turn.id for turn in turns)


@pytest.mark.parametrize("said", ["Well: yes", "", "a:b", ": ", "x"])
@pytest.mark.parametrize("speaker", ["Nadia", "A:B", "A: B", ""])
def test_a_turn_comes_back(speaker: str, said: str) -> None:
    turn = Turn("1", speaker, said, 1, datetime(2024, 1, 1))
    assert turn_of(episode_of(turn, 0)) == turn


def test_a_run_with_a_store_finds_what_a_run_without_finds(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memometer.harness import configure_memories

    monkeypatch.setattr(configure_memories, "load_encoder", lambda name, log, **_: HashEncoder())
    monkeypatch.chdir(tmp_path)
    found = []
    for name, more in (("plain", []), ("stored", ["--memory-url", url])):
        words = ["--data", str(SAMPLE), "--recall-only", "--no-mlflow", "--systems", "episodic,codebook,bm25", *more]
        assert commands.evaluate([*words, "--budgets", "64,256", "--run-dir", str(tmp_path / name)]) == 0
        records = [json.loads(line) for line in (tmp_path / name / "records.jsonl").read_text().splitlines()]
        found.append({(r["system"], r["budget_tokens"], r["question_id"]): r["recall"] for r in records})
    assert found[0] == found[1]
    with open_store(url) as store:
        sizes = sorted(store.size(scope).episodes for scope in store.scopes())
    assert sizes == [24, 24], "one scope of each system that keeps episodes"


@pytest.mark.parametrize(
    ("url", "systems", "told"),
    [
        (
            "sqlite:///x.db",
            "bm25,adaptive",
            "--memory-url needs a system that keeps episodes",
        ),
        ("postgresql://me:secret@host/x", "episodic", "--memory-url contains a password"),
        ("redis://h:1/0?behind=postgresql%3A//me%3As%40host/x", "episodic", "--memory-url contains a password"),
        (
            "ftp://host/x",
            "episodic",
            "--memory-url: episodic cannot use it: .*ftp://host/x",
        ),
        ("sqlite://host/x.db", "codebook", "--memory-url: codebook cannot use it: .*x.db"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused(
    url: str, systems: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memometer.harness import configure_memories

    monkeypatch.setattr(configure_memories, "load_encoder", lambda name, log, **_: HashEncoder())
    monkeypatch.chdir(tmp_path)
    words = ["--data", str(SAMPLE), "--recall-only", "--no-mlflow", "--systems", systems, "--memory-url", url]
    with pytest.raises(OptionError, match=told):
        make_plan(evaluate.options_of(words))
