"""Runs as data frames."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memometer.run.folder import read_records
from tests.invented_run import invent, simulated

pytest.importorskip("pandas", reason="pandas is an extra")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("frames")
    return invent(place / "run", simulated(place / "data.json", conversations=2), questions=30, budgets=(256, 1024))


def test_a_row_for_every_system_and_budget(folder: Path) -> None:
    from memometer.report.dataframes import runs_df

    frame = runs_df([folder, folder.parent / "run"]).drop_duplicates(["system", "budget_tokens"])
    systems = json.loads((folder / "results.json").read_text())["systems"]
    assert len(frame) == sum(len(entry["budgets"]) for entry in systems.values()) == 9
    row = frame.set_index(["system", "budget_tokens"]).loc["bm25", 1024]
    figures = systems["bm25"]["budgets"]["1024"]
    assert row.f1 == figures["f1"]
    assert [row.f1_low, row.f1_high] == figures["f1_interval"]
    assert (row.f1_n, row.f1_missing) == (figures["f1_n"], figures["missing"])
    assert row.usd_answer > 0
    assert row.isna()["usd_judge"], "the judge's price is not known"


def test_a_row_for_every_attempt(folder: Path) -> None:
    from memometer.report.dataframes import runs_df, samples_df

    frame = samples_df([folder])
    assert len(frame) == len(read_records(folder))
    assert frame.counts.all()
    assert frame[frame.error != ""].answer.isna().all()
    assert set(frame.columns) >= {"openai/invented-judge (strict, original)", "gold", "context_tokens"}
    mine = frame[(frame.system == "adaptive") & (frame.budget_tokens == 256) & (frame.answerable)]
    means = runs_df([str(folder)]).set_index(["system", "budget_tokens"]).loc["adaptive", 256]
    assert mine.f1.mean() == pytest.approx(means.f1)
    assert mine.evidence_recall.mean() == pytest.approx(means.evidence_recall)


def test_without_pandas_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from memometer.report.dataframes import runs_df

    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install -c constraints.txt '.\[pandas\]'"):
        runs_df([folder])
