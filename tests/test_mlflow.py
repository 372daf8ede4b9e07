"""Runs in MLflow: scores, parameters, artifacts and traces, and a child run for each system and budget of a sweep."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from memometer import benchmarks
from memometer.run.folder import RunFolder, read_records
from tests.conftest import ROOT, Reply, Server, completion, failure, shown
from tests.evaluation import evaluate
from tests.invented_run import invent, simulated
from tests.test_readme import run_job

SAMPLE = str(ROOT / "locomo" / "sample.json")

pytestmark = pytest.mark.filterwarnings("default")  # MLflow reads its own database with SQLAlchemy calls that warn


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, mlflow_tables: Path) -> Path:
    """A working folder with a database."""
    folder = tmp_path_factory.mktemp("mlflow")
    shutil.copy(mlflow_tables, folder / "mydb.sqlite")
    return folder


def test_a_run_is_in_mlflow(folder: Path, server: Server) -> None:
    reader = ("--model", "openai/scripted", "--api-base", server.url, "--tokenizer", "o200k_base")
    options = ("--context-window", "8192", "--judge-model", "none", "--trace", "--run-dir", "runs/main-job")
    done = run_job(folder, *reader, *options, "--num-test", "5")
    assert done.returncode == 0, done.stdout + done.stderr

    import mlflow

    run_folder = folder / "runs" / "main-job"
    ((budget, figures),) = json.loads((run_folder / "results.json").read_text())["systems"]["adaptive"][
        "budgets"
    ].items()
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mydb.sqlite'}")
    experiment = client.get_experiment_by_name("locomo").experiment_id
    (logged,) = client.search_runs([experiment], "tags.run_folder = 'main-job'")
    assert "adaptive" in logged.info.run_name
    assert f"{int(budget):,}" in logged.info.run_name
    assert "scripted" in logged.info.run_name
    assert logged.data.metrics[f"f1 adaptive {budget}"] == pytest.approx(figures["f1"])
    assert len(logged.data.metrics) <= 12
    assert "None" not in logged.data.params.values()
    assert logged.data.params["budget_tokens"] == budget
    assert logged.data.params["reader"] == "openai/scripted"
    assert logged.data.tags["status"] == "valid"
    data = json.loads((run_folder / "manifest.json").read_text())["identity"]["data"]
    assert str(data)[:16] in {given.dataset.digest for given in logged.inputs.dataset_inputs}
    artifacts = {artifact.path for artifact in client.list_artifacts(logged.info.run_id)}
    assert artifacts >= {"records.jsonl", "table.txt", "report.html", "metrics.json"}
    traces = client.search_traces(locations=[experiment], max_results=200)
    assert len(traces) == 6 * 5, "one trace for each question, none dropped"


def test_questions_are_traces_of_evaluation_runs(folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge fails on one question, which --resume mends."""
    import dspy
    import mlflow

    questions = {question.id: question for question in benchmarks.load("locomo").load(SAMPLE).questions}
    fails = True
    failing: list[str] = []

    def answer(number: int, body: dict[str, Any]) -> Reply:
        if body["model"] == "scripted":
            return completion("Sourdough")
        text, gold, _ = shown(body)
        if not failing and text in {question.text for question in questions.values()}:
            failing.append(text)
        return failure(500) if fails and text in failing else completion("yes" if "Sourdough" in gold else "no")

    server.answer = answer
    monkeypatch.chdir(folder)
    words = ["--model", "openai/scripted", "--api-base", server.url, "--tokenizer", "o200k_base", "--trace"]
    words += ["--context-window", "8192", "--judge-model", "openai/strict", "--judge-api-base", server.url]
    words += "--no-calibration --systems adaptive --num-test 4 --budget-tokens 200 --retries 0".split()
    assert evaluate(*words, "--run-dir", "judged", cwd=folder).returncode == 3
    fails = False
    assert evaluate("--resume", "judged", cwd=folder).returncode == 0
    assert not mlflow.utils.autologging_utils.get_autologging_config("dspy", "log_traces")
    assert dspy.settings.callbacks == []
    assert not dspy.settings.track_usage

    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mydb.sqlite'}")
    experiment = client.get_experiment_by_name("locomo").experiment_id
    (parent,) = client.search_runs([experiment], "tags.run_folder = 'judged'")
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {run.data.tags["mlflow.runType"] for run in (parent, *children)} == {"genai_evaluate"}
    (child,) = [run for run in children if run.data.params["system"] == "adaptive"]
    assert child.inputs.dataset_inputs[0].dataset.name
    traces = client.search_traces(locations=[experiment], run_id=child.info.run_id)
    records = {r["trace_id"]: r for r in read_records(folder / "judged") if r["system"] == "adaptive"}
    assert {trace.info.trace_id for trace in traces} == set(records)
    for trace in traces:
        record = records[trace.info.trace_id]
        question = questions[record["question_id"]]
        found = {each.name: each for each in trace.info.assessments}
        assert len(found) == len(trace.info.assessments), "corrected, not added again"
        assert found["f1"].value == pytest.approx(question.score("Sourdough"))
        assert ("expected_response" in found) == ("judge" in found) == question.answerable
        if question.answerable:
            assert found["judge"].value == ("correct" if "Sourdough" in question.gold else "wrong")
            assert found["judge"].source.source_id == "openai/strict"
            assert "withheld" in found["judge"].rationale
        root = trace.data.spans[0]
        assert root.inputs == {"question": question.text, "question_id": question.id}
        assert root.outputs == "Sourdough"
        assert any(span.span_type == "CHAT_MODEL" for span in trace.data.spans)

    (dataset,) = [
        found
        for found in mlflow.genai.datasets.search_datasets(experiment_ids=experiment)
        if found.dataset_id == json.loads(child.inputs.dataset_inputs[0].dataset.source)["dataset_id"]
    ]
    rows = dataset.to_df()
    inputs = {(row["question"], row["question_id"]) for row in rows["inputs"]}
    assert inputs == {(questions[r["question_id"]].text, r["question_id"]) for r in records.values()}


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
    assert (path / "mlflow_run_id").exists(), logged[0]
    client = mlflow.MlflowClient(f"sqlite:///{Path('mydb.sqlite').resolve()}")
    parent = client.get_run((path / "mlflow_run_id").read_text())
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    metrics = {(run.data.params["system"], run.data.params["budget_tokens"]): run.data.metrics for run in children}
    assert len(children) == len(metrics) == 5
    assert all(len(run.data.metrics) <= 12 for run in (parent, *children))
    assert parent.data.params["budget_tokens"] == "256, 1024"
    figures = results["systems"]["adaptive"]["budgets"]["256"]
    child = metrics["adaptive", "256"]
    assert child["f1"] == pytest.approx(parent.data.metrics["f1 adaptive 256"]) == pytest.approx(figures["f1"])
    assert [child["f1_low"], child["f1_high"]] == pytest.approx(figures["f1_interval"])
    everything = mlflow.artifacts.load_dict(f"runs:/{parent.info.run_id}/metrics.json")
    assert everything["adaptive/256/4/f1_n"] == figures["by_category"]["4"]["f1_n"]
    assert "adaptive/256/usd_answer" in everything
    assert "adaptive/256/usd_judge" not in everything, "an unknown cost is not logged"
    assert "usd" not in child


@pytest.mark.skipif(find_spec("mlflow") is None or find_spec("flask") is None, reason="needs the mlflow extra")
def test_the_documented_server_command_is_known_to_mlflow() -> None:
    page = (ROOT / "docs" / "how-to" / "reports.md").read_text(encoding="utf-8")
    (option,) = re.findall(r"mlflow server (\S+)", page)
    done = subprocess.run([sys.executable, "-m", "mlflow", "server", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert option in done.stdout
