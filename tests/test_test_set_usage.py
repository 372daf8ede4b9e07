"""The log of test-set usage, and the detection of questions that were repeated after an answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memometer import cli
from memometer.commands import evaluate, test_usage
from memometer.harness.plan import make_plan
from memometer.harness.runner import Runner, resume_run
from memometer.run import test_set_usage
from memometer.run.folder import RunFolder
from tests.conftest import ROOT

Attempts = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCOMO_PATH", str(ROOT / "locomo" / "sample.json"))
    return tmp_path


def run(folder: str, *flags: str) -> dict[str, Any]:
    """Run a recall-only evaluation of the sample; return its results."""
    options = evaluate.options_of(["--recall-only", "--systems", "simple", *flags])
    Runner(make_plan(options)).start(Path(folder))
    return results(folder)


def results(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "results.json").read_text())


def test_evaluations_of_the_test_split_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    first = run("a", "--budgets", "64")
    assert first["test_set_usage"] == {"test_scored": {"configuration": 1, "all": 1}, "duplicate_attempts": []}
    assert run("b", "--budgets", "128")["test_set_usage"]["test_scored"] == {"configuration": 1, "all": 2}
    same = run("c", "--budgets", "64", "--num-threads", "3", "--no-mlflow", "--no-calibration")
    assert same["test_set_usage"]["test_scored"] == {"configuration": 2, "all": 3}, (
        "options of the execution do not change the configuration"
    )
    sentence = str(test_set_usage.TestSetUsage(configuration=2, all=3))
    assert f"SAMPLE  {sentence}" in Path("c", "table.txt").read_text().splitlines()
    assert f"SAMPLE  {sentence}" in capsys.readouterr().out.splitlines()
    assert run("d", "--budgets", "64", "--split", "train")["test_set_usage"]["test_scored"] is None
    assert run("e", "--budgets", "64", "--split", "all")["test_set_usage"]["test_scored"]["all"] == 4, (
        "all includes the test part"
    )
    lines = [json.loads(line) for line in Path("runs", "ledger.jsonl").read_text().splitlines()]
    assert [line["run"] for line in lines] == ["a", "b", "c", "e"]
    assert {line["data"] for line in lines} == {json.loads(Path("a", "manifest.json").read_text())["identity"]["data"]}
    assert all(line["questions"] == 13 and line["time"] and line["status"] == "valid" for line in lines)


def test_a_resumed_run_counts_once() -> None:
    run("a", "--budgets", "64")
    resume_run(Path("a"))
    assert results("a")["test_set_usage"]["test_scored"] == {"configuration": 1, "all": 1}
    assert len(test_set_usage.entries()) == 2, "lines are only appended"


def test_damaged_lines_are_kept(working_folder: Path) -> None:
    Path("runs").mkdir()
    torn = b'{"run": "x", "da'
    Path("runs", "ledger.jsonl").write_bytes(b"\xff no line\n[1]\n" + torn)
    assert run("a", "--budgets", "64")["test_set_usage"]["test_scored"] == {"configuration": 1, "all": 4}
    content = Path("runs", "ledger.jsonl").read_bytes()
    assert content.startswith(b"\xff no line\n[1]\n" + torn + b"\n{")
    assert test_usage.main([]) == 0


def test_other_data_is_counted_separately() -> None:
    run("a", "--budgets", "64")
    uses = test_set_usage.count_uses(test_set_usage.entries(), configuration="x", data="other")
    assert (uses.configuration, uses.all) == (0, 0)


def test_concurrent_processes_are_counted(working_folder: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from memometer.run import test_set_usage\n"
        "from memometer.run.folder import RunFolder\n"
        "for i in range(25):\n"
        "    manifest = {'config': {}, 'identity': {'data': 'd'}, 'created_at': 'now'}\n"
        "    with RunFolder.create(Path(f'{sys.argv[1]}-{i}'), manifest) as folder:\n"
        "        uses = test_set_usage.record_use(folder, questions=1, status='valid')\n"
        "print(uses.all)"
    )
    command = [sys.executable, "-c", script]
    started = [
        subprocess.Popen([*command, name], env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
        for name in ("a", "b", "c")
    ]
    last = [int(process.communicate(timeout=60)[0]) for process in started]
    assert max(last) == 75
    assert len(test_set_usage.entries()) == 75


def attempt(id: str, number: int, error: str = "") -> dict[str, Any]:
    return {
        "system": "s",
        "budget_tokens": 1,
        "question_id": id,
        "option_order": "free",
        "attempt": number,
        "error": error,
    }


honest = st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(0, 3), st.booleans()), min_size=1)


@given(honest, st.randoms(use_true_random=False))
def test_only_failed_attempts_may_be_repeated(plan: dict[str, tuple[int, bool]], random: Any) -> None:
    queues = {
        id: [attempt(id, n + 1, "timeout") for n in range(failed)] + ([attempt(id, failed + 1)] if answered else [])
        for id, (failed, answered) in plan.items()
    }
    records: Attempts = []
    while any(queues.values()):
        records.append(queues[random.choice([id for id, queue in queues.items() if queue])].pop(0))
    assert test_set_usage.duplicate_attempts(records) == []
    for i, record in enumerate(records):
        if not record["error"]:  # repeated after the answer
            again = attempt(record["question_id"], record["attempt"] + 1)
            (found,) = test_set_usage.duplicate_attempts([*records, again])
            assert found.startswith(f"{record['question_id']} (s, 1)")
        elif any(later["question_id"] == record["question_id"] for later in records[i + 1 :]):
            assert test_set_usage.duplicate_attempts(records[:i] + records[i + 1 :]), "a failed attempt is missing"


def test_a_run_with_a_repeated_answer_is_invalid(capsys: pytest.CaptureFixture[str]) -> None:
    run("a", "--budgets", "64")
    assert test_usage.main(["a"]) == 0
    lines = Path("a", "records.jsonl").read_text().splitlines()
    again = {**json.loads(lines[0]), "attempt": 2}
    with Path("a", "records.jsonl").open("a") as file:
        file.write(json.dumps(again) + "\n")
    assert resume_run(Path("a")) == "invalid"
    found = results("a")
    assert found["status"] == "invalid"
    assert len(found["test_set_usage"]["duplicate_attempts"]) == 1
    assert "INVALID" in Path("a", "table.txt").read_text()
    assert "are ungraded, more than" not in capsys.readouterr().out
    assert test_usage.main(["a"]) == 3
    assert "INVALID" in capsys.readouterr().out
    assert cli.main(["test-usage", "nowhere"]) == 2


def test_configuration_ignores_execution_options(working_folder: Path) -> None:
    manifest = {"config": {"seed": 1, "retries": 2}, "identity": {"data": "d"}, "created_at": "t"}
    with RunFolder.create(working_folder / "x", manifest) as folder:
        assert test_set_usage.record_use(folder, questions=1, status="valid").all == 1
    assert test_set_usage.configuration_digest(manifest) == test_set_usage.configuration_digest(
        {**manifest, "config": {"seed": 1, "retries": 0}}
    )
    assert test_set_usage.configuration_digest(manifest) != test_set_usage.configuration_digest(
        {**manifest, "config": {"seed": 2, "retries": 2}}
    )
