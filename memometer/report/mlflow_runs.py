"""Runs in MLflow: written straight into mydb.sqlite in the working folder, no server needed.

    mlflow server --backend-store-uri sqlite:///mydb.sqlite      shows them (needs the `mlflow` extra)

MLflow takes seconds to import, so nothing imports this module before a run is over, or is to be traced.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memometer.benchmarks.protocol import Dataset
from memometer.models.errors import describe
from memometer.report.summary import flat
from memometer.run.cost import numbers
from memometer.run.folder import RunFolder

EXPERIMENT = "locomo"
AT_ONCE = 1000
"""So many metrics MLflow takes in one batch."""


def log_run(folder: RunFolder, results: dict[str, Any], data: Dataset) -> str:
    """Log one finished run: parameters, metrics with n, ungraded and interval, the data's digest, the folder with its
    reports as artifacts. Where it has several budgets, each system at each budget is a run of its own beneath it.

    Returns a sentence on where it went. A failure of MLflow is such a sentence too: the run itself is safe on disk.
    """

    def log() -> str:
        if folder.manifest["config"]["trace"]:
            sys.modules["mlflow"].flush_trace_async_logging()
        return _log(folder, results, data)

    return told(folder, "run", log)


def told(folder: RunFolder, what: str, log: Callable[[], str]) -> str:
    """Where it went that `log` logs, in a sentence, or why it went nowhere."""
    try:
        return f"MLflow run {log()} in mydb.sqlite"
    except ImportError:
        return "MLflow is not installed, so nothing was logged; say --no-mlflow to run without it."
    except Exception as error:  # noqa: BLE001 - MLflow is a view of the folder; no fault of its may fail what it views
        return f"MLflow could not log this {what} ({describe(error)}); everything is in {folder.path}."


@contextmanager
def run_of(folder: RunFolder) -> Iterator[tuple[Any, bool]]:
    """The active MLflow run of a folder, and whether it is new: what was resumed after it was logged stays one run."""
    mlflow = open_database()
    known = folder.path / "mlflow_run_id"
    run_id = known.read_text() if known.exists() else None
    with mlflow.start_run(run_id=run_id, run_name=None if run_id else folder.path.name) as active:
        known.write_text(active.info.run_id)
        yield active, run_id is None


def _log(folder: RunFolder, results: dict[str, Any], data: Dataset) -> str:
    import mlflow
    from mlflow.data.http_dataset_source import HTTPDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    manifest = folder.manifest
    with run_of(folder) as (active, _):
        mlflow.set_tags(
            {name: str(results[name]) for name in ("status", "split", "stand_in", "subset", "ungraded_share")}
        )
        mlflow.set_tags({"git": str(manifest["git"]), **{f"left_out.{k}": v for k, v in results["left_out"].items()}})
        parameters = {**manifest["config"], **{f"identity/{k}": v for k, v in manifest["identity"].items()}}
        parameters |= {"reader": str(results["reader"]), "judged_by": str(results["judge"])}
        mlflow.log_params({name: str(value)[:500] for name, value in parameters.items()})
        client, run_id = mlflow.MlflowClient(), str(active.info.run_id)
        places = [(name, budget) for name, entry in results["systems"].items() for budget in entry["budgets"]]
        sweep = any(len(entry["budgets"]) > 1 for entry in results["systems"].values())
        _log_metrics(client, run_id, metrics(results, places, parts=not sweep))
        source = HTTPDatasetSource(data.source)
        digest = data.sha256[:16]
        mlflow.log_input(MetaDataset(source, name=data.kind or data.benchmark, digest=digest), "eval")
        for path in sorted(folder.path.iterdir()):
            if not path.name.startswith("."):
                mlflow.log_artifact(str(path))
        if sweep:
            _log_places(client, active.info, results, places)
        return run_id


def metrics(results: dict[str, Any], places: list[tuple[str, str]], *, parts: bool) -> dict[str, float]:
    """`adaptive/1024/f1`, with `_low`, `_high`, `_n` and `_ungraded` beside it, and what the stages cost as
    `adaptive/1024/usd_answer`; with `parts` also over all questions and by category, as `adaptive/1024/all/f1` and
    `adaptive/1024/4/f1`. A sweep leaves those to the runs beneath it."""
    return {
        f"{system}/{budget}/{name}": value
        for system, budget in places
        for name, value in _of_place(results, system, budget, parts=parts).items()
    }


def _of_place(results: dict[str, Any], system: str, budget: str, *, parts: bool = True) -> dict[str, float]:
    """The metrics of one system at one budget."""
    figures = results["systems"][system]["budgets"][budget]
    chosen = {"": figures}
    if parts:
        chosen |= {"all/": figures["all_questions"]}
        chosen |= {f"{category}/": part for category, part in figures["by_category"].items()}
    found = {
        f"{prefix}{name}": value
        for prefix, part in chosen.items()
        for name, value in {**flat(part, results["withheld"]), "ungraded": part["ungraded"]}.items()
    }
    found |= numbers(results["accounting"], system, budget)
    return {re.sub(r"[^\w./ -]", "", name): value for name, value in found.items() if value is not None}


def _log_places(client: Any, parent: Any, results: dict[str, Any], places: list[tuple[str, str]]) -> None:
    """A run beneath `parent` for each place; one that is there already, from before a resume, is logged again."""
    known = {
        (run.data.params.get("system"), run.data.params.get("budget_tokens")): run.info.run_id
        for run in client.search_runs([parent.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.run_id}'")
    }
    for system, budget in places:
        run_id = known.get((system, budget))
        if run_id is None:
            tags = {"mlflow.parentRunId": parent.run_id}
            run_id = client.create_run(parent.experiment_id, tags=tags, run_name=f"{system} {budget}").info.run_id
            client.log_param(run_id, "system", system)
            client.log_param(run_id, "budget_tokens", budget)
        _log_metrics(client, run_id, _of_place(results, system, budget))
        client.set_terminated(run_id)


def _log_metrics(client: Any, run_id: str, found: dict[str, float]) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    all_of_them = [Metric(name, float(value), now, 0) for name, value in found.items()]
    for at in range(0, len(all_of_them), AT_ONCE):
        client.log_batch(run_id, metrics=all_of_them[at : at + AT_ONCE])


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

    # In full, since MLflow keeps a connection for each address, and a process may change its working folder.
    mlflow.set_tracking_uri(f"sqlite:///{Path('mydb.sqlite').resolve()}")
    with FileLock("mydb.sqlite.lock"):  # two first runs at once would both make the tables
        if mlflow.get_experiment_by_name(EXPERIMENT) is None:
            mlflow.create_experiment(EXPERIMENT, artifact_location=(Path.cwd() / "mlartifacts").as_uri())
        mlflow.set_experiment(EXPERIMENT)
    return mlflow
