"""The MLflow database of the working folder, mydb.sqlite, and the MLflow run of a run folder."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memometer.run.folder import RunFolder

EXPERIMENT = "locomo"
BATCH = 1000
"""Maximum number of metrics that MLflow accepts in one call."""
HEADLINE = 12
"""Maximum number of metrics on one run. MLflow draws a chart for each, so all others are in artifacts."""
RUN_ID_FILE = "mlflow_run_id"


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


@contextmanager
def active_run(folder: RunFolder, *, name: str = "", **parameters: object) -> Iterator[tuple[Any, str, bool]]:
    """Open the folder's MLflow run, a new one or the one it was logged to before, and log its options and identity.

    Args:
        folder: The run folder.
        name: Name of the run; the name of the folder by default.
        parameters: Further parameters. They replace options of the same name.

    Yields:
        MLflow, the run's id, and True if the run is new.
    """
    mlflow = open_database()
    file, manifest = folder.path / RUN_ID_FILE, folder.manifest
    run_id = file.read_text() if file.exists() else None
    with mlflow.start_run(run_id=run_id, run_name=None if run_id else name or folder.path.name) as active:
        file.write_text(active.info.run_id)
        mlflow.set_tags({"git": str(manifest["git"]), "run_folder": folder.path.name})
        identity = {f"identity/{key}": value for key, value in manifest["identity"].items()}
        log_parameters(str(active.info.run_id), {**manifest["config"], **parameters, **identity})
        yield mlflow, str(active.info.run_id), run_id is None


def log_parameters(run_id: str, parameters: Mapping[str, object]) -> None:
    """Log the parameters that have a value. A parameter that was logged before keeps its value."""
    from mlflow import MlflowClient
    from mlflow.entities import Param

    known = MlflowClient().get_run(run_id).data.params
    found = {
        key: ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        for key, value in parameters.items()
        if value not in (None, "", [], ())
    }
    params = [Param(key, value[:500]) for key, value in found.items() if key not in known]
    if params:
        MlflowClient().log_batch(run_id, params=params)


def log_metrics(run_id: str, values: Iterable[tuple[str, float | None, int]]) -> None:
    """Log (name, value, step) in batches; a value of None is skipped."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    found = [Metric(name, float(value), now, step) for name, value, step in values if value is not None]
    for start in range(0, len(found), BATCH):
        MlflowClient().log_batch(run_id, metrics=found[start : start + BATCH])
