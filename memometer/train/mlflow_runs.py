"""A training in MLflow's mydb.sqlite: its values, a metric a step, the validations, the adapter's notes.

MLflow takes seconds to import, so nothing imports this module before a training is over.
"""

from __future__ import annotations

import time
from typing import Any

from memometer.report.mlflow_runs import AT_ONCE, run_of, told
from memometer.run.folder import RunFolder
from memometer.train import metrics as figures


def log_training(folder: RunFolder, results: dict[str, Any]) -> str:
    """Returns a sentence on where it went. A failure of MLflow is such a sentence too: all of it is in the folder."""
    return told(folder, "training", lambda: _log(folder, results))


def _log(folder: RunFolder, results: dict[str, Any]) -> str:
    import mlflow
    from mlflow.entities import Metric

    manifest = folder.manifest
    with run_of(folder) as (active, _):
        mlflow.set_tags({"kind": f"train/{results['mode']}", "git": str(manifest["git"]), "alarm": results["alarm"]})
        parameters = {
            **manifest["config"],
            **{f"values/{name}": value for name, value in manifest["values"].items()},
            **{f"identity/{name}": value for name, value in manifest["identity"].items()},
        }
        mlflow.log_params({name: str(value)[:500] for name, value in parameters.items()})
        now = int(time.time() * 1000)
        series = [("train", line) for line in figures.read_lines(folder.path / "steps.jsonl")]
        series += [("validation", line) for line in figures.read_lines(folder.path / "validation_scores.jsonl")]
        metrics = [
            Metric(f"{where}/{name}", float(value), now, int(line["step"]))
            for where, line in series
            for name, value in line.items()
            if name not in ("step", "what") and value is not None
        ]
        for at in range(0, len(metrics), AT_ONCE):
            mlflow.MlflowClient().log_batch(active.info.run_id, metrics=metrics[at : at + AT_ONCE])
        for name in ("manifest.json", "results.json", "best/training.json", "best/README.md"):
            if (folder.path / name).exists():
                mlflow.log_artifact(str(folder.path / name))
        return str(active.info.run_id)
