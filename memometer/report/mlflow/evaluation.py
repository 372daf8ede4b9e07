"""An evaluation as MLflow runs: one for the whole, and a child run for each system at each budget.

All are evaluation runs over one evaluation dataset. A run has at most twelve metrics; metrics.json has all others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from memometer.benchmarks.protocol import Dataset, Question
from memometer.report.aggregate import grouped
from memometer.report.mlflow import prompts
from memometer.report.mlflow.database import HEADLINE, active_run, log_metrics, log_parameters
from memometer.report.mlflow.traces import assess, expectations, question_inputs
from memometer.report.summary import flat, shown_budget
from memometer.run.cost import cost_columns
from memometer.run.folder import Record, RunFolder, key
from memometer.systems import BASELINES

Results = Mapping[str, Any]
SystemKey = tuple[str, str]
"""(system, budget as in results.json)."""

LEADING = ("f1", "judge", "evidence_recall", "all_evidence")
"""The measures of a child run, the most important first."""
SHOWN_SYSTEMS = 3
"""Systems that the name of a run lists."""


def log_evaluation(folder: RunFolder, results: Results, data: Dataset) -> str:
    """Log an evaluation and return the id of its run. A run that was logged before is updated."""
    from mlflow.data.http_dataset_source import HTTPDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    keys = [(name, budget) for name, entry in results["systems"].items() for budget in entry["budgets"]]
    budgets = folder.manifest["config"].get("budgets") or sorted({int(budget) for _, budget in keys} - {0})
    systems = _compared(keys)
    title = _name(" + ".join(systems), budgets, results)
    with active_run(folder, name=title, budget_tokens=budgets, reader=results["reader"]) as (mlflow, run_id, _):
        client = mlflow.MlflowClient()
        tags = {name: str(results[name]) for name in ("status", "split", "data_kind", "subset", "missing_share")}
        mlflow.set_tags({**tags, **{f"left_out.{name}": reason for name, reason in results["left_out"].items()}})
        log_parameters(run_id, {"systems": [system for system, _ in keys], "judged_by": results["judge"]})
        log_metrics(run_id, ((name, value, 0) for name, value in headline(results, keys).items()))
        source = HTTPDatasetSource(data.source)
        mlflow.log_input(MetaDataset(source, name=data.label, digest=data.sha256[:16]), "eval")
        for path in sorted(folder.path.iterdir()):
            if not path.name.startswith("."):
                mlflow.log_artifact(str(path))
        mlflow.log_dict(metrics(results, keys), "metrics.json")
        questions = _questions(folder, data)
        dataset = _evaluation_dataset(client.get_run(run_id).info.experiment_id, questions, results, data)
        pairs = _pairs(folder, questions)
        _mark_as_evaluation(client, run_id, dataset)
        children = _children(client, run_id)
        for of in reversed(_baselines_last(keys)):  # MLflow lists the latest first
            child_id = children.get(of) or _create_child(client, run_id, of, results)
            log_metrics(child_id, ((name, value, 0) for name, value in child_headline(results, *of).items()))
            client.log_dict(child_id, metrics_of(results, *of), "metrics.json")
            _mark_as_evaluation(client, child_id, dataset)
            assess(client, child_id, pairs.get(of, ()), results["withheld"])
            if program := folder.manifest["identity"].get("program") if of[0] == "adaptive" else None:
                prompts.link(client, [run_id, child_id], data.benchmark, program)
            client.set_terminated(child_id)
        return run_id


# ------------------------------------------------------------ names and metrics


def _compared(keys: Sequence[SystemKey]) -> list[str]:
    """List the systems that are not baselines, or else all; of many only the first."""
    systems = list(dict.fromkeys(system for system, _ in keys))
    systems = [system for system in systems if system not in BASELINES] or systems
    more = len(systems) - SHOWN_SYSTEMS
    return [*systems[:SHOWN_SYSTEMS], f"{more} more"] if more > 0 else systems


def _baselines_last(keys: Sequence[SystemKey]) -> list[SystemKey]:
    return sorted(keys, key=lambda of: of[0] in BASELINES)


def _name(systems: str, budgets: Sequence[str | int], results: Results) -> str:
    """Name a run by systems, budgets and reader, such as `adaptive, 1,024 tokens, gpt-4o-mini`."""
    shown = [shown_budget(budget) for budget in budgets if int(budget)]
    memory = f"{' / '.join(shown)} {results.get('unit', 'tokens')}" if shown else "no memory"
    reader = str(results["reader"]).rpartition("/")[2] if results["reader"] else "recall only"
    return f"{systems}, {memory}, {reader}"


def headline(results: Results, keys: Sequence[SystemKey]) -> dict[str, float]:
    """Return the metrics of the run of a whole evaluation.

    Args:
        results: The content of results.json.
        keys: The systems with their budgets.

    Returns:
        `questions`, `missing_share`, `calls`, `usd`; then the leading measure of each system at each budget, such as
        `f1 adaptive 1024`, baselines last, up to the maximum of a run.
    """
    entries = {of: results["systems"][of[0]]["budgets"][of[1]] for of in keys}
    total = results["cost"]["total"]
    found = {
        "questions": max((entry["all_questions"]["questions"] for entry in entries.values()), default=0),
        "missing_share": results["missing_share"],
        "calls": total["calls"],
        "usd": total["usd"],
    }
    for of in _baselines_last(keys):
        values = flat(entries[of], results["withheld"])
        if measure := next((name for name in LEADING if values.get(name) is not None), None):
            found[f"{measure} {of[0]} {of[1]}"] = values[measure]
    return _loggable(dict(list(found.items())[:HEADLINE]))


def child_headline(results: Results, system: str, budget: str) -> dict[str, float]:
    """Return the metrics of the run of one system at one budget: the leading measures with intervals, and the cost.

    Args:
        results: The content of results.json.
        system: Name of the system.
        budget: The budget as text.
    """
    entry = results["systems"][system]["budgets"][budget]
    values = flat(entry, results["withheld"])
    dollars = [v for name, v in cost_columns(results["cost"], system, budget).items() if name.startswith("usd_")]
    found = {f"{name}{part}": values.get(f"{name}{part}") for name in LEADING[:3] for part in ("", "_low", "_high")}
    found["all_evidence"] = None if values.get("f1") is not None else values.get("all_evidence")
    found |= {
        "mean_tokens": values.get("mean_tokens"),
        "missing": entry["missing"],
        "usd": None if None in dollars else sum(filter(None, dollars)),
    }
    return _loggable(found)


def metrics(results: Results, keys: Sequence[SystemKey]) -> dict[str, float]:
    """Collect all metrics of an evaluation by name.

    Args:
        results: The content of results.json.
        keys: The systems with their budgets.

    Returns:
        For example `adaptive/1024/f1`, `adaptive/1024/f1_low`, `adaptive/1024/usd_answer`, `adaptive/1024/all/f1` (over
        all questions) and `adaptive/1024/4/f1` (of a category).
    """
    return {
        f"{system}/{budget}/{name}": value
        for system, budget in keys
        for name, value in metrics_of(results, system, budget).items()
    }


def metrics_of(results: Results, system: str, budget: str) -> dict[str, float]:
    """Collect all metrics of one system at one budget, as `metrics` names them after the budget."""
    entry = results["systems"][system]["budgets"][budget]
    parts = {"": entry, "all/": entry["all_questions"]}
    parts |= {f"{category}/": part for category, part in entry["by_category"].items()}
    found = {
        f"{prefix}{name}": value
        for prefix, part in parts.items()
        for name, value in {**flat(part, results["withheld"]), "missing": part["missing"]}.items()
    }
    return _loggable(found | cost_columns(results["cost"], system, budget))


def _loggable(values: Mapping[str, float | None]) -> dict[str, float]:
    return {re.sub(r"[^\w./ -]", "", name): value for name, value in values.items() if value is not None}


# ------------------------------------------------------------ the evaluation dataset


def _questions(folder: RunFolder, data: Dataset) -> list[Question]:
    """The questions of the run, in the order of the data."""
    chosen = {record["question_id"] for record in folder.records()}
    return [question for question in data.questions if question.id in chosen]


def _pairs(folder: RunFolder, questions: Sequence[Question]) -> dict[SystemKey, list[tuple[Question, Record]]]:
    """Return the questions of each system at each budget with the attempts that count."""
    records = folder.records()
    groups = grouped(records, questions, dict.fromkeys(map(key, records)))
    return {
        (system, str(budget)): [(question, record) for question, record in pairs if record is not None]
        for (system, budget), pairs in groups.items()
    }


def _evaluation_dataset(experiment_id: str, questions: Sequence[Question], results: Results, data: Dataset) -> Any:
    """Return the evaluation dataset of the questions; create it if no earlier run had the same questions.

    None if MLflow lacks the part that it needs, such as pandas.
    """
    from memometer.run.environment import digest

    content = digest([data.sha256, *(question.id for question in questions)])
    name = f"{data.label.lower()} {results['split']}, {len(questions)} questions ({content[:8]})"
    try:
        import pandas  # noqa: F401 - `create_dataset` imports it, which is too late to leave the dataset out
        from mlflow.genai.datasets import create_dataset, search_datasets
    except ImportError:
        return None
    for known in search_datasets(experiment_ids=experiment_id, filter_string=f'name = "{name}"'):
        return known
    tags = {"sha256": data.sha256, "source": data.source}
    dataset = create_dataset(name=name, experiment_id=experiment_id, tags=tags)
    dataset.merge_records(
        [
            {
                "inputs": question_inputs(question),
                "expectations": expectations(question),
                "tags": {"category": data.categories.get(question.category, question.category)},
            }
            for question in questions
        ]
    )
    return dataset


def _mark_as_evaluation(client: Any, run_id: str, dataset: Any) -> None:
    """Tag a run as an evaluation run, and log its dataset as input."""
    from mlflow.entities import DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_RUN_TYPE, MLFLOW_RUN_TYPE_GENAI_EVALUATE

    client.set_tag(run_id, MLFLOW_RUN_TYPE, MLFLOW_RUN_TYPE_GENAI_EVALUATE)
    if dataset is not None:
        context = [InputTag(MLFLOW_DATASET_CONTEXT, "eval")]
        client.log_inputs(run_id, [DatasetInput(dataset._to_mlflow_entity(), context)])


# ------------------------------------------------------------ child runs


def _children(client: Any, parent_id: str) -> dict[SystemKey, str]:
    """The child runs from before a resume: (system, budget) -> id."""
    experiment_id = client.get_run(parent_id).info.experiment_id
    return {
        (run.data.params.get("system"), run.data.params.get("budget_tokens")): run.info.run_id
        for run in client.search_runs([experiment_id], f"tags.`mlflow.parentRunId` = '{parent_id}'")
    }


def _create_child(client: Any, parent_id: str, of: SystemKey, results: Results) -> str:
    system, budget = of
    experiment_id = client.get_run(parent_id).info.experiment_id
    name = _name(system, [budget], results)
    run = client.create_run(experiment_id, tags={"mlflow.parentRunId": parent_id}, run_name=name)
    log_parameters(run.info.run_id, {"system": system, "budget_tokens": budget, "reader": results["reader"]})
    return str(run.info.run_id)
