"""Run an evaluation from Python.

    evaluation = memometer.evaluate(recall_only=True, systems=("adaptive", "bm25"), budgets=(512, 1024))
    evaluation.results["systems"]["bm25"]

The options have the names of the flags of `memometer eval`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memometer.harness.options import EvaluateOptions


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        outcome: valid, invalid (too many calls failed), failed (no call can succeed) or stopped.
        folder: the run folder.
        results: the content of its results.json; empty if the run has no results.
    """

    outcome: str
    folder: Path
    results: dict[str, Any]


def evaluate(*, run_dir: str | Path | None = None, **options: Any) -> Evaluation:
    """Evaluate memory systems on a benchmark, as `memometer eval` does.

    Args:
        run_dir: the run folder; None creates one under runs/.
        options: the fields of `memometer.harness.options.EvaluateOptions`, which have the names of the command's flags.

    Raises:
        OptionError: two options contradict each other, or a value is impossible.
        RunFolderError: the folder is not empty or cannot be written.
        TypeError: an option is unknown.
    """
    from memometer.harness.make_plan import make_plan
    from memometer.harness.runner import Runner
    from memometer.run.folder import new_path

    chosen = EvaluateOptions(**options)
    plan = make_plan(chosen)
    folder = new_path() if run_dir is None else Path(run_dir)
    outcome = Runner(plan, cost_limit=chosen.cost_limit).start(folder)
    path = folder / "results.json"
    return Evaluation(outcome, folder, json.loads(path.read_bytes()) if path.exists() else {})
