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

from memometer.commands import evaluate, test_usage
from memometer.harness.make_plan import make_plan
from memometer.harness.runner import Runner, resume_run
from memometer.run import test_set_usage, usage_log
from memometer.run.folder import RunFolder
from tests.conftest import ROOT

Attempts = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCOMO_PATH", str(ROOT / "locomo" / "sample.json"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    return tmp_path


def counted(folder: str) -> tuple[int, int]:
    found = results(folder)["test_set_usage"]["test_scored"]
    return found["configuration"], found["all"]


def digest_of(folder: str) -> str:
    return str(json.loads(Path(folder, "manifest.json").read_text())["identity"]["data"])


def run(folder: str, *flags: str) -> dict[str, Any]:
    """Run a recall-only evaluation of the sample; return its results."""
    options = evaluate.options_of(["--recall-only", "--systems", "simple", *flags])
    Runner(make_plan(options)).start(Path(folder))
    return results(folder)


def results(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "results.json").read_text())


def test_evaluations_of_the_test_split_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    run("a", "--budgets", "64")
    assert counted("a") == (1, 1)
    assert "Earlier use is unknown" in capsys.readouterr().out, "a first entry does not mean a first use"
    run("b", "--budgets", "128")
    assert counted("b") == (1, 2)
    run("c", "--budgets", "64", "--num-threads", "3", "--no-mlflow", "--no-calibration")
    assert counted("c") == (2, 3), "options of the execution do not change the configuration"
    text = Path("c", "table.txt").read_text()
    assert "evaluated twice with this configuration and 3 times in total" in text
    assert run("d", "--budgets", "64", "--split", "train")["test_set_usage"]["test_scored"] is None
    run("e", "--budgets", "64", "--split", "all")
    assert counted("e") == (1, 4), "all includes the test part"
    lines = test_set_usage.entries(digest_of("a"))
    assert [line["run"] for line in lines] == ["a", "b", "c", "e"]
    assert all(line["questions"] == 13 and line["time"] and line["status"] == "valid" for line in lines)


def test_the_log_does_not_depend_on_the_working_folder(working_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("a", "--budgets", "64")
    (working_folder / "elsewhere").mkdir()
    monkeypatch.chdir(working_folder / "elsewhere")
    run("b", "--budgets", "64")
    assert counted("b") == (2, 2)


def test_a_resumed_run_counts_once() -> None:
    run("a", "--budgets", "64")
    resume_run(Path("a"))
    assert counted("a") == (1, 1)
    assert len(test_set_usage.entries(digest_of("a"))) == 2, "lines are only appended"


def test_lines_of_the_former_log_count(working_folder: Path) -> None:
    Path("runs").mkdir()
    content = b'\xff no line\n[1]\n{"run": "x", "da'
    Path("runs", "ledger.jsonl").write_bytes(content)
    run("a", "--budgets", "64")
    assert counted("a") == (1, 4)
    assert Path("runs", "ledger.jsonl").read_bytes() == content


def test_an_edited_log_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    run("a", "--budgets", "64")
    run("b", "--budgets", "64")
    run("c", "--budgets", "64")
    path = usage_log.path_of(digest_of("a"))
    assert test_usage.main([]) == 0
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], *lines[2:]]))
    assert test_usage.main([]) == 3
    path.write_bytes(b"".join(lines) + b'{"run": "torn')
    run("d", "--budgets", "64")
    assert test_usage.main([]) == 0, "an interrupted write is not an edit"
    assert counted("d") == (4, 5)


def test_other_data_is_counted_separately() -> None:
    run("a", "--budgets", "64")
    uses = test_set_usage.count_uses(test_set_usage.entries("other"), configuration="x", data="other")
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
    environment = {"PYTHONPATH": str(ROOT), "XDG_DATA_HOME": str(working_folder / "home")}
    started = [
        subprocess.Popen([*command, name], env=environment, stdout=subprocess.PIPE, text=True)
        for name in ("a", "b", "c")
    ]
    last = [int(process.communicate(timeout=60)[0]) for process in started]
    assert max(last) == 75
    assert len(test_set_usage.entries("d")) == 75
    assert not usage_log.is_changed(usage_log.path_of("d"))


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
