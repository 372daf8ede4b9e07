"""MLflow logging of evaluations, searches and trainings, and traces of DSPy calls, in mydb.sqlite.

    mlflow server --backend-store-uri sqlite:///mydb.sqlite      shows them (needs the `mlflow` extra)

MLflow takes seconds to import, so this module is imported only to log or to trace.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memometer.benchmarks.protocol import Dataset
from memometer.models.errors import describe
from memometer.report.summary import flat
from memometer.run.cost import cost_columns
from memometer.run.folder import RunFolder

EXPERIMENT = "locomo"
BATCH = 1000
"""Maximum number of metrics that MLflow accepts in one call."""


@dataclass(frozen=True, slots=True)
class NestedRun:
    """One child run: name, parameters, metrics (None is skipped) and an optional JSON artifact (file name, value)."""

    name: str
    parameters: Mapping[str, object]
    metrics: Mapping[str, float | None]
    artifact: tuple[str, Any] | None = None


def log_run(folder: RunFolder, results: Mapping[str, Any], data: Dataset) -> str:
    """Log a finished evaluation: parameters, metrics, the digest of the data and the files of the run folder.

    With several budgets, each system at each budget becomes a child run.

    Args:
        folder: The run folder.
        results: The content of its results.json.
        data: The data that was evaluated.

    Returns:
        A sentence that names the MLflow run, or the reason why nothing was logged. Failures of MLflow do not raise.
    """

    def log() -> str:
        if folder.manifest["config"]["trace"]:
            sys.modules["mlflow"].flush_trace_async_logging()
        return _log_evaluation(folder, results, data)

    return _sentence(folder, "run", log)


def log_search(folder: RunFolder, results: Mapping[str, Any], candidates: Iterable[NestedRun]) -> str:
    """Log a prompt search, with a child run for each candidate prompt.

    Args:
        folder: The run folder.
        results: The content of its results.json.
        candidates: The prompts that the search tried.

    Returns:
        A sentence as `log_run` returns it.
    """

    def log() -> str:
        with _active_run(folder) as (mlflow, run_id, is_new):
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
        with _active_run(folder, values=folder.manifest["values"]) as (mlflow, run_id, _):
            mlflow.set_tags({"kind": f"train/{results['mode']}", "alarm": results["alarm"]})
            _log_metrics(
                run_id,
                (
                    (f"{prefix}/{name}", value, int(line["step"]))
                    for prefix, lines in series.items()
                    for line in lines
                    for name, value in line.items()
                    if name not in ("step", "what")
                ),
            )
            for name in ("manifest.json", "results.json", "best/training.json", "best/README.md"):
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


@contextmanager
def _active_run(folder: RunFolder, **more: Mapping[str, Any]) -> Iterator[tuple[Any, str, bool]]:
    """Open the folder's MLflow run, a new one or the one it was logged to before, and log what every kind of run has.

    Yields MLflow, the run's id, and True if the run is new.
    """
    mlflow = open_database()
    known, manifest = folder.path / "mlflow_run_id", folder.manifest
    run_id = known.read_text() if known.exists() else None
    with mlflow.start_run(run_id=run_id, run_name=None if run_id else folder.path.name) as active:
        known.write_text(active.info.run_id)
        mlflow.set_tag("git", str(manifest["git"]))
        parameters = dict(manifest["config"])
        for prefix, values in (*more.items(), ("identity", manifest["identity"])):
            parameters |= {f"{prefix}/{name}": value for name, value in values.items()}
        mlflow.log_params({name: str(value)[:500] for name, value in parameters.items()})
        yield mlflow, str(active.info.run_id), run_id is None


def _log_evaluation(folder: RunFolder, results: Mapping[str, Any], data: Dataset) -> str:
    from mlflow.data.http_dataset_source import HTTPDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    with _active_run(folder) as (mlflow, run_id, _):
        tags = {name: str(results[name]) for name in ("status", "split", "data_kind", "subset", "missing_share")}
        mlflow.set_tags({**tags, **{f"left_out.{name}": reason for name, reason in results["left_out"].items()}})
        mlflow.log_params({"reader": str(results["reader"]), "judged_by": str(results["judge"])})
        keys = [(name, budget) for name, entry in results["systems"].items() for budget in entry["budgets"]]
        is_sweep = any(len(entry["budgets"]) > 1 for entry in results["systems"].values())
        _log_metrics(run_id, ((*item, 0) for item in metrics(results, keys, parts=not is_sweep).items()))
        source = HTTPDatasetSource(data.source)
        mlflow.log_input(MetaDataset(source, name=data.label, digest=data.sha256[:16]), "eval")
        for path in sorted(folder.path.iterdir()):
            if not path.name.startswith("."):
                mlflow.log_artifact(str(path))
        if is_sweep:
            _log_children(mlflow.MlflowClient(), run_id, results, keys)
        return run_id


def metrics(results: Mapping[str, Any], keys: Iterable[tuple[str, str]], *, parts: bool) -> dict[str, float]:
    """Collect the metrics of an evaluation by name.

    Args:
        results: The content of results.json.
        keys: The systems with their budgets.
        parts: True also collects the metrics over all questions and of each category.

    Returns:
        For example `adaptive/1024/f1`, `adaptive/1024/f1_low`, `adaptive/1024/usd_answer`, and with `parts`
        `adaptive/1024/all/f1` and `adaptive/1024/4/f1`.
    """
    return {
        f"{system}/{budget}/{name}": value
        for system, budget in keys
        for name, value in _metrics_of(results, system, budget, parts=parts).items()
    }


def _metrics_of(results: Mapping[str, Any], system: str, budget: str, *, parts: bool = True) -> dict[str, float]:
    entry = results["systems"][system]["budgets"][budget]
    chosen = {"": entry}
    if parts:
        chosen["all/"] = entry["all_questions"]
        chosen |= {f"{category}/": part for category, part in entry["by_category"].items()}
    found = {
        f"{prefix}{name}": value
        for prefix, part in chosen.items()
        for name, value in {**flat(part, results["withheld"]), "missing": part["missing"]}.items()
    }
    found |= cost_columns(results["cost"], system, budget)
    return {re.sub(r"[^\w./ -]", "", name): value for name, value in found.items() if value is not None}


def _log_children(client: Any, parent_id: str, results: Mapping[str, Any], keys: Iterable[tuple[str, str]]) -> None:
    """Log a child run for each system and budget; a child from before a resume is logged again."""
    experiment_id = client.get_run(parent_id).info.experiment_id
    known = {
        (run.data.params.get("system"), run.data.params.get("budget_tokens")): run.info.run_id
        for run in client.search_runs([experiment_id], f"tags.`mlflow.parentRunId` = '{parent_id}'")
    }
    for system, budget in keys:
        run_id = known.get((system, budget))
        if run_id is None:
            tags = {"mlflow.parentRunId": parent_id}
            run_id = client.create_run(experiment_id, tags=tags, run_name=f"{system} {budget}").info.run_id
            client.log_param(run_id, "system", system)
            client.log_param(run_id, "budget_tokens", budget)
        _log_metrics(run_id, ((*item, 0) for item in _metrics_of(results, system, budget).items()))
        client.set_terminated(run_id)


def _log_metrics(run_id: str, values: Iterable[tuple[str, float | None, int]]) -> None:
    """Log (name, value, step) in batches; a value of None is skipped."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    found = [Metric(name, float(value), now, step) for name, value, step in values if value is not None]
    for start in range(0, len(found), BATCH):
        MlflowClient().log_batch(run_id, metrics=found[start : start + BATCH])


def trace_dspy() -> None:
    """Record a trace of every DSPy call in MLflow, with prompts and replies and without keys; about 5 ms per call.

    Raises:
        ImportError: Only mlflow-skinny is installed; its DSPy part needs the full package.
    """
    os.environ.setdefault("MLFLOW_ASYNC_TRACE_LOGGING_MAX_QUEUE_SIZE", "100000")  # the default drops half of a fast run
    import dspy
    import mlflow.dspy
    from mlflow.dspy.callback import MlflowCallback

    class RedactingCallback(MlflowCallback):
        """MLflow's callback, without the secrets that a provider may repeat in an error message."""

        def on_module_end(self, call_id: str, outputs: Any, exception: Exception | None = None) -> None:
            super().on_module_end(call_id, outputs, _redacted(exception))

        def on_lm_end(self, call_id: str, outputs: Any, exception: Exception | None = None) -> None:
            super().on_lm_end(call_id, outputs, _redacted(exception))

        def on_adapter_format_end(self, call_id: str, outputs: Any, exception: Exception | None = None) -> None:
            super().on_adapter_format_end(call_id, outputs, _redacted(exception))

        def on_adapter_parse_end(self, call_id: str, outputs: Any, exception: Exception | None = None) -> None:
            super().on_adapter_parse_end(call_id, outputs, _redacted(exception))

        def on_tool_end(self, call_id: str, outputs: Any, exception: Exception | None = None) -> None:
            super().on_tool_end(call_id, outputs, _redacted(exception))

    open_database()
    # autolog keeps a callback of this class that is registered already.
    dspy.configure(callbacks=[*dspy.settings.callbacks, RedactingCallback()])
    mlflow.dspy.autolog()


def _redacted(exception: Exception | None) -> Exception | None:
    """An exception with a redacted message and no traceback, from which MLflow would record the original message."""
    return None if exception is None else Exception(describe(exception))


def open_database() -> Any:
    """Import MLflow and let it write into mydb.sqlite of the working folder.

    Returns:
        The module.
    """
    import logging

    logging.getLogger("alembic").setLevel(logging.WARNING)
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    from filelock import FileLock

    # An absolute path: MLflow keeps one connection per address, and a process may change its working folder.
    mlflow.set_tracking_uri(f"sqlite:///{Path('mydb.sqlite').resolve()}")
    with FileLock("mydb.sqlite.lock"):  # two processes must not create the tables at the same time
        if mlflow.get_experiment_by_name(EXPERIMENT) is None:
            mlflow.create_experiment(EXPERIMENT, artifact_location=(Path.cwd() / "mlartifacts").as_uri())
        mlflow.set_experiment(EXPERIMENT)
    return mlflow
