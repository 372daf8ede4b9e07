"""Runs in MLflow: scores, parameters, artifacts and traces, and a child run for each system and budget of a sweep."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from memometer.run.folder import RunFolder
from tests.conftest import ROOT, Server
from tests.invented_run import invent, simulated
from tests.test_readme import run_job

pytestmark = pytest.mark.filterwarnings("default")  # MLflow reads its own database with SQLAlchemy calls that warn


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder; its database is made once, which takes long."""
    return tmp_path_factory.mktemp("mlflow")


def test_a_run_is_in_mlflow(folder: Path, server: Server) -> None:
    reader = ("--model", "openai/scripted", "--api-base", server.url, "--tokenizer", "o200k_base")
    options = ("--context-window", "8192", "--judge-model", "none", "--trace", "--run-dir", "runs/main-job")
    done = run_job(folder, *reader, *options)
    assert done.returncode == 0, done.stdout + done.stderr

    import mlflow

    run_folder = folder / "runs" / "main-job"
    figures = json.loads((run_folder / "results.json").read_text())["systems"]["adaptive"]["budgets"]["1024"]
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mydb.sqlite'}")
    experiment = client.get_experiment_by_name("locomo")
    (logged,) = client.search_runs([experiment.experiment_id], "attributes.run_name = 'main-job'")
    metrics = logged.data.metrics
    assert metrics["adaptive/1024/f1"] == pytest.approx(figures["f1"])
    assert metrics["adaptive/1024/f1_n"] == figures["f1_n"] == 11
    assert metrics["adaptive/1024/f1_missing"] == 0
    assert metrics["adaptive/1024/tokens_answer"] > 0
    assert metrics["adaptive/1024/4/evidence_recall"] == pytest.approx(figures["by_category"]["4"]["evidence_recall"])
    assert "1024" in logged.data.params["budgets"]
    assert logged.data.params["reader"] == "openai/scripted"
    assert logged.data.tags["status"] == "valid"
    data = json.loads((run_folder / "manifest.json").read_text())["identity"]["data"]
    assert logged.inputs.dataset_inputs[0].dataset.digest == str(data)[:16]
    artifacts = {artifact.path for artifact in client.list_artifacts(logged.info.run_id)}
    assert artifacts >= {"records.jsonl", "table.txt", "report.html"}
    traces = client.search_traces(locations=[experiment.experiment_id], max_results=200)
    assert len(traces) == 78, "one trace for each question, none dropped"


def test_a_sweep_has_a_child_run_for_each_system_and_budget(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    from memometer.report.mlflow import log_run

    monkeypatch.chdir(folder)
    data = simulated(tmp_path / "data.json", conversations=2)
    path = invent(tmp_path / "sweep", data, systems=("adaptive", "none", "oracle"), budgets=(256, 1024), questions=20)
    results = json.loads((path / "results.json").read_text())
    with RunFolder.reopen(path) as run_folder:
        logged = [log_run(run_folder, results, data) for _ in range(2)]  # as after a resume
    assert logged[0] == logged[1]
    client = mlflow.MlflowClient(f"sqlite:///{Path('mydb.sqlite').resolve()}")
    parent = client.get_run((path / "mlflow_run_id").read_text())
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    metrics = {(run.data.params["system"], run.data.params["budget_tokens"]): run.data.metrics for run in children}
    assert len(children) == len(metrics) == 5
    figures = results["systems"]["adaptive"]["budgets"]["256"]
    child = metrics["adaptive", "256"]
    for name in ("f1", "f1_n", "usd_answer"):
        assert child[name] == pytest.approx(parent.data.metrics[f"adaptive/256/{name}"])
    assert child["f1"] == pytest.approx(figures["f1"])
    assert [child["f1_low"], child["f1_high"]] == pytest.approx(figures["f1_interval"])
    assert child["4/f1_n"] == figures["by_category"]["4"]["f1_n"]
    assert "usd_judge" not in child, "an unknown cost is not logged"


@pytest.mark.skipif(find_spec("mlflow") is None or find_spec("flask") is None, reason="needs the mlflow extra")
def test_the_documented_server_command_is_known_to_mlflow() -> None:
    page = (ROOT / "docs" / "how-to" / "reports.md").read_text(encoding="utf-8")
    (option,) = re.findall(r"^mlflow server (\S+)", page, re.MULTILINE)
    done = subprocess.run([sys.executable, "-m", "mlflow", "server", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert option in done.stdout
