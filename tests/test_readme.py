"""What the README says is run: its commands in a copy of the checkout, on the sample; its code as a memory system."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from memometer.run.folder import RunFolder
from memory_system import Memory, Utf8Bytes
from tests.conftest import ROOT
from tests.invented_run import invent, simulated

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme") / "checkout"
    skip = shutil.ignore_patterns(".*", "runs", "mlartifacts", "mydb.sqlite*", "*.egg-info", "build", "locomo10.json*")
    shutil.copytree(ROOT, folder, ignore=skip)
    return folder


def run(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in ("TOGETHER_API_KEY", "OPENAI_API_KEY")}
    env["LOCOMO_PATH"] = str(ROOT / "locomo" / "sample.json")
    env["MEMOMETER_URL"] = f"sqlite:///{cwd / 'memory.db'}"
    words = command.split()
    assert words[0].endswith("python"), command
    return subprocess.run([sys.executable, *words[1:]], cwd=cwd, env=env, capture_output=True, text=True, timeout=600)


def test_the_first_screen_holds_the_two_commands() -> None:
    first_screen = "\n".join(README.splitlines()[:40])
    job, tests = (command for command in COMMANDS if command.startswith("python3 -m venv"))
    assert job in first_screen
    assert job.endswith("evaluate.py --num-test 20 --budget-tokens 1024")
    assert tests in first_screen
    assert tests.endswith("-m pytest")
    assert all("pip install -q -c constraints.txt" in command for command in (job, tests))


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python ")])
def test_a_command_of_the_readme_works(command: str, checkout: Path, tiny: Path) -> None:
    done = run(command, checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SAMPLE" in done.stdout or "-m memories" in command, "only memories in use know nothing of LOCOMO"


@pytest.mark.filterwarnings("default")  # MLflow reads its own database with SQLAlchemy calls that warn
def test_the_main_job_works_and_is_in_mlflow(checkout: Path, tiny: Path) -> None:
    (job,) = (c.split("&&")[-1].strip() for c in COMMANDS if "--budget-tokens 1024" in c and "&&" in c)
    done = run(job + " --trace --run-dir runs/main-job", checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("SAMPLE  embedded:tiny answers, nobody judges; forecast: at most 65 calls")
    results = json.loads((checkout / "runs" / "main-job" / "results.json").read_text())
    assert set(results["systems"]) == {"recent", "full_context", "adaptive", "none", "refusal", "oracle"}
    f1 = {name: next(iter(system["budgets"].values()))["f1"] for name, system in results["systems"].items()}
    assert f1["oracle"] > f1["none"]

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{checkout / 'mydb.sqlite'}")
    experiment = client.get_experiment_by_name("locomo")
    (logged,) = client.search_runs([experiment.experiment_id], "attributes.run_name = 'main-job'")
    figures = results["systems"]["adaptive"]["budgets"]["1024"]
    metrics = logged.data.metrics
    assert metrics["adaptive/1024/f1"] == pytest.approx(figures["f1"])
    assert metrics["adaptive/1024/f1_n"] == figures["f1_n"] == 11
    assert metrics["adaptive/1024/f1_ungraded"] == 0
    assert metrics["adaptive/1024/tokens_answer"] > 0
    assert metrics["adaptive/1024/4/evidence_recall"] == pytest.approx(figures["by_category"]["4"]["evidence_recall"])
    assert logged.data.params["budget_tokens"] == "1024"
    assert logged.data.params["reader"] == "embedded:tiny"
    assert logged.data.tags["status"] == "valid"
    assert logged.inputs.dataset_inputs[0].dataset.digest == results_digest(checkout)
    assert {artifact.path for artifact in client.list_artifacts(logged.info.run_id)} >= {
        "records.jsonl",
        "table.txt",
        "report.html",
    }
    traces = client.search_traces(locations=[experiment.experiment_id], max_results=200)
    assert len(traces) == 78, "one trace a question, none dropped"


@pytest.mark.filterwarnings("default")
def test_a_sweep_is_a_run_with_a_run_for_each_system_and_budget(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    from memometer.report.mlflow_runs import log_run

    monkeypatch.chdir(checkout)  # where the database is already: making one takes long
    data = simulated(tmp_path / "data.json", conversations=2)
    path = invent(tmp_path / "sweep", data, systems=("adaptive", "none", "oracle"), budgets=(256, 1024), questions=20)
    results = json.loads((path / "results.json").read_text())
    with RunFolder.reopen(path) as folder:
        told = [log_run(folder, results, data) for _ in range(2)]  # as after a resume
    assert told[0] == told[1]
    client = mlflow.MlflowClient(f"sqlite:///{Path('mydb.sqlite').resolve()}")
    parent = client.get_run((path / "mlflow_run_id").read_text())
    below = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    places = {(run.data.params["system"], run.data.params["budget_tokens"]): run.data.metrics for run in below}
    assert len(below) == len(places) == 5
    figures = results["systems"]["adaptive"]["budgets"]["256"]
    mine = places["adaptive", "256"]
    for name in ("f1", "f1_n", "usd_answer"):
        assert mine[name] == pytest.approx(parent.data.metrics[f"adaptive/256/{name}"])
    assert mine["f1"] == pytest.approx(figures["f1"])
    assert [mine["f1_low"], mine["f1_high"]] == pytest.approx(figures["f1_interval"])
    assert mine["4/f1_n"] == figures["by_category"]["4"]["f1_n"]
    assert "usd_judge" not in mine, "not known, so not logged"


def results_digest(checkout: Path) -> str:
    return str(json.loads((checkout / "runs" / "main-job" / "manifest.json").read_text())["identity"]["data"])[:16]


@pytest.mark.skipif(find_spec("mlflow") is None or find_spec("flask") is None, reason="needs the mlflow extra")
def test_the_mlflow_command_is_one_that_mlflow_knows() -> None:
    (command,) = (c for c in COMMANDS if c.startswith("mlflow server"))
    words = command.split()
    done = subprocess.run([sys.executable, "-m", *words[:2], "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert words[2] in done.stdout


def test_without_mlflow_a_run_needs_none(checkout: Path, tmp_path: Path, tiny: Path) -> None:
    """`--no-mlflow` where MLflow cannot be imported at all."""
    (tmp_path / "mlflow.py").write_text("raise ImportError('MLflow is not here')")
    env = {**os.environ, "LOCOMO_PATH": str(ROOT / "locomo" / "sample.json"), "PYTHONPATH": str(tmp_path)}
    args = ["--model", "embedded:tiny", "--num-test", "1", "--budget-tokens", "64", "--systems", "simple"]
    command = [sys.executable, "evaluate.py", *args, "--run-dir", str(tmp_path / "run"), "--no-mlflow"]
    done = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MLflow" not in done.stdout


@pytest.fixture
def example() -> type[Memory[Any]]:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec", dont_inherit=True), names)
    return names["Longest"]


def test_the_example_is_a_memory_system(example: type[Memory[Any]], sample: Any) -> None:
    memory = example(count=Utf8Bytes())
    state = memory.new()
    memory.observe(state, sample.conversations[0].turns)
    recall = memory.recall(state, "anything", 300)
    assert 0 < recall.tokens <= 300
    longest = max(sample.conversations[0].turns, key=lambda turn: len(turn.line.encode()))
    assert longest.id in recall.turn_ids
