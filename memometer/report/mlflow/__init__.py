"""MLflow logging of evaluations, searches and trainings, and traces of DSPy calls, in mydb.sqlite.

    mlflow server --backend-store-uri sqlite:///mydb.sqlite      shows them (needs the `mlflow` extra)

MLflow takes seconds to import, so this module is imported only to log or to trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from memometer.benchmarks.protocol import Dataset
from memometer.models.errors import describe
from memometer.report.mlflow import prompts
from memometer.report.mlflow.database import active_run, log_metrics, open_database
from memometer.report.mlflow.evaluation import log_evaluation
from memometer.report.mlflow.prompts import PromptVersion
from memometer.run.folder import RunFolder

TRAINING_METRICS = (
    *(f"train/{name}" for name in ("reward", "loss", "kl", "strict", "f1", "zero_variance", "reply_tokens")),
    *(f"validation/{name}" for name in ("reward", "strict", "f1", "unparseable", "reply_tokens")),
)
"""The metrics of a training that MLflow draws; the files have all."""
TRAINING_FILES = ("manifest.json", "results.json", "steps.jsonl", "validation_scores.jsonl", "best/training.json",
                  "best/README.md")  # fmt: skip


@dataclass(frozen=True, slots=True)
class NestedRun:
    """One child run: name, parameters, metrics (None is skipped) and an optional JSON artifact (file name, value)."""

    name: str
    parameters: Mapping[str, object]
    metrics: Mapping[str, float | None]
    artifact: tuple[str, Any] | None = None


def log_run(folder: RunFolder, results: Mapping[str, Any], data: Dataset) -> str:
    """Log a finished evaluation: parameters, metrics, the digest of the data and the files of the run folder.

    Each system at each budget becomes a child run. Traces of the questions get their assessments.

    Args:
        folder: The run folder.
        results: The content of its results.json.
        data: The data that was evaluated.

    Returns:
        A sentence that names the MLflow run, or the reason why nothing was logged. Failures of MLflow do not raise.
    """

    def log() -> str:
        if folder.manifest["config"]["trace"]:
            open_database().flush_trace_async_logging()
        return log_evaluation(folder, results, data)

    return _sentence(folder, "run", log)


def log_search(
    folder: RunFolder,
    results: Mapping[str, Any],
    candidates: Iterable[NestedRun],
    *,
    prompt: str,
    versions: Iterable[PromptVersion],
) -> str:
    """Log a prompt search, with a child run for each candidate prompt, and register the prompts it compared.

    Args:
        folder: The run folder.
        results: The content of its results.json.
        candidates: The prompts that the search tried.
        prompt: Name of the prompt in MLflow's registry.
        versions: The unoptimized prompt and the best candidate.

    Returns:
        A sentence as `log_run` returns it.
    """

    def log() -> str:
        name = f"{results['optimizer']}, {results['reader']}, {folder.path.name}"
        with active_run(folder, name=name) as (mlflow, run_id, is_new):
            for candidate in candidates if is_new else ():
                with mlflow.start_run(run_name=candidate.name, nested=True):
                    mlflow.log_params(dict(candidate.parameters))
                    mlflow.log_metrics({k: v for k, v in candidate.metrics.items() if v is not None})
                    if candidate.artifact:
                        name, value = candidate.artifact
                        mlflow.log_dict(value, name)
            mlflow.set_tags({"kind": "optimize", "gained": str(results["gained"])})
            for name in ("gain", "f1"):
                found = results[name]
                low, high = found["interval"] or (None, None)
                metrics = {key: found[key] for key in ("before", "after", "difference", "n")}
                metrics |= {"difference_low": low, "difference_high": high}
                mlflow.log_metrics({f"{name}/{key}": value for key, value in metrics.items() if value is not None})
            for path in sorted(folder.path.iterdir()):
                if path.suffix in (".json", ".txt"):
                    mlflow.log_artifact(str(path))
            for version in versions:
                prompts.register(mlflow.MlflowClient(), run_id, prompt, version)
            return run_id

    return _sentence(folder, "search", log)


def log_training(
    folder: RunFolder, results: Mapping[str, Any], series: Mapping[str, Iterable[Mapping[str, Any]]]
) -> str:
    """Log a training: hyperparameters, one metric value per step, and the notes of the adapter.

    Args:
        folder: The run folder.
        results: The content of its results.json.
        series: Prefix of the metric names -> lines with `step` and values.

    Returns:
        A sentence as `log_run` returns it.
    """

    def log() -> str:
        values = {f"values/{key}": value for key, value in folder.manifest["values"].items()}
        with active_run(folder, **values) as (mlflow, run_id, _):
            mlflow.set_tags({"kind": f"train/{results['mode']}", "alarm": results["alarm"]})
            log_metrics(
                run_id,
                (
                    (f"{prefix}/{name}", value, int(line["step"]))
                    for prefix, lines in series.items()
                    for line in lines
                    for name, value in line.items()
                    if f"{prefix}/{name}" in TRAINING_METRICS
                ),
            )
            for name in TRAINING_FILES:
                if (folder.path / name).exists():
                    mlflow.log_artifact(str(folder.path / name))
            return run_id

    return _sentence(folder, "training", log)


def _sentence(folder: RunFolder, what: str, log: Callable[[], str]) -> str:
    try:
        return f"Logged as MLflow run {log()} in mydb.sqlite."
    except ImportError:
        return "Nothing was logged because MLflow is not installed. Use --no-mlflow to run without it."
    except Exception as error:  # noqa: BLE001 - the run folder is complete; a failure of MLflow must not fail the run
        return f"MLflow could not log this {what} ({describe(error)}). All results are in {folder.path}."
