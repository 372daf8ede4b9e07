"""The public names of the package: a memory without the evaluation's libraries, and one in a store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import memometer
from locomo.dataset import SAMPLE
from memometer.errors import UserError
from tests.conftest import ROOT

HEAVY = ("dspy", "litellm", "mlflow", "scipy", "torch", "sqlalchemy", "pandas", "nltk")

WITHOUT = f"""
import sys, warnings
for name in {HEAVY}:
    sys.modules[name] = None
warnings.simplefilter("ignore")  # LiteLLM brings the vocabulary of o200k_base
from datetime import datetime
import memometer
from locomo.dataset import SAMPLE
from memometer import systems
turns = [memometer.Turn("1", "Nadia", "I sold the kayak.", 1, datetime(2024, 5, 3)),
         memometer.Turn("2", "Oskar", "The vet closes at six.", 2, datetime(2024, 5, 4))]
for name in ("adaptive", "bm25", "recent", "session"):
    memory = systems.load(name)()
    state = memory.new()
    memory.observe(state, turns)
    recall = memory.recall(state, "Who sold a kayak?", 500)
    assert "kayak" in recall.text and 0 < recall.tokens <= 500, name
with memometer.open_memory(sys.argv[1]) as stored:
    stored.add("I sold the kayak to my cousin.", speaker="Nadia")
    assert "Nadia" in stored.recall("Who sold a kayak?", 500).text
"""


def test_a_memory_needs_no_library_of_the_evaluation(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT, str(tmp_path / "memory.db")]
    subprocess.run(command, cwd=ROOT, check=True)


def test_public_names_are_found() -> None:
    for name in memometer.__all__:
        assert getattr(memometer, name).__name__ == name
    with pytest.raises(AttributeError, match="nonsense"):
        memometer.nonsense  # noqa: B018


def test_a_memory_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    with memometer.open_memory(tmp_path / "memory.db") as memory:
        id = memory.add("I sold the kayak to my cousin.", speaker="Nadia")
        memory.add("The vet closes at six on Fridays.", speaker="Oskar")
    with memometer.open_memory(f"sqlite:///{tmp_path}/memory.db") as memory:
        recall = memory.recall("Who bought the kayak?", budget_tokens=60)
        assert id in recall.turn_ids
        assert recall.tokens <= 60
        assert memory.forget([id]) == [id]
        assert id not in memory.recall("Who bought the kayak?").turn_ids


def test_an_unknown_system_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nonsense"):
        memometer.open_memory(tmp_path / "memory.db", system="nonsense")


def test_an_evaluation_is_a_function(tmp_path: Path) -> None:
    options: dict[str, Any] = {"data": str(SAMPLE), "split": "all", "recall_only": True, "no_mlflow": True}
    runs = [
        memometer.evaluate(run_dir=tmp_path / name, systems=(name,), budgets=(128,), **options)
        for name in ("bm25", "recent")
    ]
    assert [run.outcome for run in runs] == ["valid", "valid"]
    assert "bm25" in runs[0].results["systems"]
    assert memometer.compare([run.folder for run in runs], data=SAMPLE).measure == "evidence_recall"
