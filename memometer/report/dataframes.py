"""Runs as pandas data frames. Needs the extra `pandas`.

from memometer.report.dataframes import runs_df, samples_df
runs_df(["runs/A", "runs/B"]).pivot(index="system", columns=["run", "budget_tokens"], values="f1")
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memometer.benchmarks.metrics import evidence_recall
from memometer.judging.graders import graders_of, score
from memometer.report.runs_in_progress import FollowedRun, follow
from memometer.report.summary import flat
from memometer.run.cost import cost_columns
from memometer.run.folder import key, latest

if TYPE_CHECKING:
    import pandas as pd


def runs_df(folders: Iterable[str | Path]) -> pd.DataFrame:
    """Load the results of runs, over the answerable questions.

    Args:
        folders: Run folders.

    Returns:
        One row per run, system and budget. Columns: `run`, `system`, `budget_tokens`, `status`, `questions`, `missing`;
        those of `memometer.report.summary.flat`; `usd_`, `tokens_`, `calls_` and `seconds_` of ingest, recall, answer
        and judge, empty if unknown.
    """
    return _pandas().DataFrame([row for followed in _follow(folders) for row in _run_rows(followed)])


def samples_df(folders: Iterable[str | Path]) -> pd.DataFrame:
    """Load the attempts of runs.

    Args:
        folders: Run folders.

    Returns:
        One row per attempt at a question. Columns: `run`, `system`, `budget_tokens`, `question_id`, `conversation`,
        `category`, `answerable`, `option_order`, `attempt`, `counts` (True for the attempt that counts),
        `question`, `gold`, `answer`, `error`, `f1`, `evidence_recall`, `context_tokens`, `prompt_tokens`,
        `completion_tokens`, `calls`, `seconds`, and one column per grader with the share of its repeats that are
        correct, empty if missing.
    """
    return _pandas().DataFrame([row for followed in _follow(folders) for row in _sample_rows(followed)])


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise ImportError("data frames need pandas: pip install -c constraints.txt '.[pandas]'") from error
    return pandas


def _follow(folders: Iterable[str | Path]) -> list[FollowedRun]:
    followed = follow([Path(folder) for folder in folders])
    for each in followed:
        each.read()
    return followed


def _run_rows(followed: FollowedRun) -> Iterable[dict[str, Any]]:
    results = followed.run().results
    for system, entry in results["systems"].items():
        for budget, metrics in entry["budgets"].items():
            yield {
                "run": followed.name,
                "system": system,
                "budget_tokens": int(budget),
                "status": results["status"],
                "questions": metrics["questions"],
                "missing": metrics["missing"],
                **flat(metrics, results.get("withheld", {})),
                **cost_columns(results.get("cost", {"systems": {}}), system, budget),
            }


def _sample_rows(followed: FollowedRun) -> Iterable[dict[str, Any]]:
    questions = {question.id: question for question in followed.data.questions}
    counting = latest(followed.records)
    graders = graders_of(followed.records)
    for record in followed.records:
        question, answer = questions[record["question_id"]], record["answer"]
        shown = record["recall"]["turn_ids"]
        yield {
            "run": followed.name,
            "system": record["system"],
            "budget_tokens": record["budget_tokens"],
            "question_id": question.id,
            "conversation": question.conversation,
            "category": question.category,
            "answerable": question.answerable,
            "option_order": record["option_order"],
            "attempt": record["attempt"],
            "counts": counting[key(record)] is record,
            "question": question.text,
            "gold": question.gold,
            "answer": answer,
            "error": record["error"],
            "f1": None if answer is None else question.score(answer, record["option_order"]),
            "evidence_recall": None
            if record["error"] or shown is None
            else evidence_recall(question.evidence, set(shown)),
            "context_tokens": record["recall"]["tokens"],
            **{name: record[name] for name in ("prompt_tokens", "completion_tokens", "calls", "seconds")},
            **{grader.name: score(record, grader) for grader in graders},
        }
