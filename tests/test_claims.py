"""Written claims and the methods paragraph, from an invented run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from memometer import cli
from memometer.benchmarks.protocol import Dataset
from tests.invented_run import invent


@pytest.fixture
def run(tmp_path: Path, sample: Dataset) -> Path:
    return invent(tmp_path / "run", sample, budgets=(512, 1024))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "no claims"),
        ("- 3", "claim 1 is 3"),
        ("- {run: run, system: adaptive}", "better_than"),
        ("- {run: run, system: adaptive, better_than: bm25, bye: 2}", "bye"),
        ("- {run: run, system: adaptive, better_than: bm25, by: -2}", "by is -2"),
        ("- {run: run, system: adaptive, better_than: bm25, expect: yes}", "expect"),
        ("- {run: run, system: adaptive, better_than: nobody, budget: 512}", "nobody"),
        ("- {run: run, system: adaptive, better_than: bm25}", "budget"),
        ("- [", "cannot be read"),
    ],
)
def test_a_faulty_claim_is_named(text: str, word: str, run: Path, capfd: Any) -> None:
    (run.parent / "claims.yaml").write_text(text)
    assert cli.main(["claims", str(run.parent / "claims.yaml")]) == 2
    out, err = capfd.readouterr()
    assert word in err
    assert "Traceback" not in err
    assert not out


def test_claims_from_few_conversations_are_underpowered_and_exit_3(run: Path, capfd: Any) -> None:
    claim = "{run: run, system: adaptive, better_than: bm25, budget: 1024, measure: f1"
    (run.parent / "claims.yaml").write_text(f"claims:\n- {claim}}}\n- {claim}, by: 100}}\n")
    assert cli.main(["claims", str(run.parent / "claims.yaml")]) == 3
    first, second = capfd.readouterr().out.splitlines()
    assert "underpowered (expected: supported)" in first
    assert "by 100 points: underpowered (expected: supported)" in second
    (run.parent / "claims.yaml").write_text(f"- {claim}, expect: underpowered}}\n")
    assert cli.main(["claims", str(run.parent / "claims.yaml")]) == 0


def test_methods_names_the_run(run: Path, capfd: Any) -> None:
    assert cli.main(["methods", str(run)]) == 0
    out = capfd.readouterr().out
    for word in ("adaptive", "bm25", "512 and 1,024", "invented-reader", "clustered by conversation", "split all"):
        assert word in out
    assert cli.main(["methods", str(run.parent)]) != 0
