"""Runs in MLflow: written straight into mydb.sqlite in the working folder, no server needed.

    mlflow server --backend-store-uri sqlite:///mydb.sqlite      shows them (needs the `mlflow` extra)

MLflow takes seconds to import, so nothing imports this module before a run is over, or is to be traced.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from language_models.failure import describe
from locomo.dataset import URL, Dataset
from locomo.run_folder import RunFolder

EXPERIMENT = "locomo"
METRICS = {"f1": "f1_n", "judge": "judge_n", "evidence_recall": "n", "all_evidence": "n"}
"""What is logged with its interval, and the key that holds its n."""
PLAIN = ("ungraded", "mean_tokens", "mean_total_tokens", "mean_calls", "mean_seconds")


def log_run(folder: RunFolder, results: dict[str, Any], data: Dataset) -> str:
    """Log one finished run: parameters, metrics with n and interval, the data's digest, the folder as artifacts.

    Returns a sentence on where it went. A failure of MLflow is such a sentence too: the run itself is safe on disk.
    """
    try:
        if folder.manifest["config"]["trace"]:
            sys.modules["mlflow"].flush_trace_async_logging()
        return f"MLflow run {_log(folder, results, data)} in mydb.sqlite"
    except ImportError:
        return "MLflow is not installed, so nothing was logged; say --no-mlflow to run without it."
    except Exception as error:  # noqa: BLE001 - MLflow is a view of the run folder; no fault of its may fail the run
        return f"MLflow could not log this run ({describe(error)}); everything is in {folder.path}."


def _log(folder: RunFolder, results: dict[str, Any], data: Dataset) -> str:
    mlflow = open_database()
    from mlflow.data.http_dataset_source import HTTPDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    manifest = folder.manifest
    known = folder.path / "mlflow_run_id"  # a run that was resumed after it was logged stays one run
    run_id = known.read_text() if known.exists() else None
    with mlflow.start_run(run_id=run_id, run_name=None if run_id else folder.path.name) as active:
        known.write_text(active.info.run_id)
        mlflow.set_tags(
            {name: str(results[name]) for name in ("status", "split", "stand_in", "subset", "ungraded_share")}
        )
        mlflow.set_tags({"git": str(manifest["git"]), **{f"left_out.{k}": v for k, v in results["left_out"].items()}})
        parameters = {**manifest["config"], **{f"identity/{k}": v for k, v in manifest["identity"].items()}}
        parameters |= {"reader": str(results["reader"]), "judged_by": str(results["judge"])}
        mlflow.log_params({name: str(value)[:500] for name, value in parameters.items()})
        mlflow.log_metrics(dict(_metrics(results["systems"])))
        source = HTTPDatasetSource(URL)
        digest = data.sha256[:16]
        mlflow.log_input(MetaDataset(source, name=data.stand_in or "LOCOMO", digest=digest), "eval")
        for path in sorted(folder.path.iterdir()):
            if not path.name.startswith("."):
                mlflow.log_artifact(str(path))
        return str(active.info.run_id)


def _metrics(systems: dict[str, Any]) -> Any:
    """("adaptive/1024/f1", 0.4), with _ci_low, _ci_high and _n beside it, and by category under /1 to /5."""
    for system, entry in systems.items():
        for budget, figures in entry["budgets"].items():
            parts = {"": figures, "/1-5": figures["categories_1_5"]}
            parts |= {f"/{category}": part for category, part in figures["by_category"].items()}
            for suffix, part in parts.items():
                prefix = f"{system}/{budget}{suffix}"
                for name, n in METRICS.items():
                    if part.get(name) is None:
                        continue
                    yield f"{prefix}/{name}", part[name]
                    yield f"{prefix}/{name}_n", part[n]
                    if interval := part[f"{name}_interval"]:
                        yield f"{prefix}/{name}_ci_low", interval[0]
                        yield f"{prefix}/{name}_ci_high", interval[1]
                yield from ((f"{prefix}/{name}", part[name]) for name in PLAIN if part.get(name) is not None)


def trace_dspy() -> None:
    """Keep a trace of every DSPy call in MLflow: prompts and replies, no keys. Costs about 5 ms a call.

    Raises ImportError where only MLflow's small package is installed: its DSPy part needs the full one.
    """
    os.environ.setdefault("MLFLOW_ASYNC_TRACE_LOGGING_MAX_QUEUE_SIZE", "100000")  # the default drops half of a fast run
    import mlflow.dspy
    from mlflow.entities import SpanEvent

    def without_secrets(error: BaseException) -> SpanEvent:
        # A provider may echo a key in its error, which MLflow would keep word for word, with the stack.
        return SpanEvent("exception", attributes={"exception.message": describe(error)})

    SpanEvent.from_exception = staticmethod(without_secrets)
    open_database()
    mlflow.dspy.autolog()


def open_database() -> Any:
    """MLflow, writing into mydb.sqlite of the working folder."""
    import logging

    logging.getLogger("alembic").setLevel(logging.WARNING)
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    from filelock import FileLock

    mlflow.set_tracking_uri("sqlite:///mydb.sqlite")
    with FileLock("mydb.sqlite.lock"):  # two first runs at once would both make the tables
        if mlflow.get_experiment_by_name(EXPERIMENT) is None:
            mlflow.create_experiment(EXPERIMENT, artifact_location=(Path.cwd() / "mlartifacts").as_uri())
        mlflow.set_experiment(EXPERIMENT)
    return mlflow
