"""The log of test-set usage, and the check for questions that were answered twice.

Every run that evaluates held-out conversations appends a line to runs/ledger.jsonl in the working folder; imported runs
do not. If a configuration is evaluated n times and reported once, the reported result may be the best of n.

Within a run, only failed attempts may be repeated. An attempt after an answer, or a missing earlier attempt, shows that
records were added or removed by hand. Edited records are not detected.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from memometer.run.environment import digest
from memometer.run.folder import Key, Record, RunFolder, is_answered, key

USAGE_LOG = Path("runs") / "ledger.jsonl"

EXECUTION_OPTIONS = {
    "data", "memory_url", "num_threads", "retries", "timeout_seconds", "fail_on_error", "cost_limit", "price",
    "judge_price", "max_false_accept", "no_calibration", "no_certificate", "wrong_answers", "no_mlflow", "trace",
}  # fmt: skip
"""Options that change no answer and are not part of a configuration. Data is identified by its digest."""


@dataclass(frozen=True, slots=True)
class TestSetUsage:
    """The number of runs that evaluated the test split; a resumed run counts once.

    Attributes:
        configuration: runs with the same configuration.
        all: runs with any configuration.
    """

    __test__ = False  # pytest would collect it

    configuration: int
    all: int

    def __str__(self) -> str:
        return (
            f"The test split has been evaluated {_times(self.configuration)} with this configuration and "
            f"{_times(self.all)} in total."
        )


def configuration_digest(manifest: dict[str, Any]) -> str:
    """Return a digest of everything that determines a run's answers: options, code, models, prompts and data."""
    options = {name: value for name, value in manifest["config"].items() if name not in EXECUTION_OPTIONS}
    return digest([options, {k: v for k, v in manifest["identity"].items() if k != "configuration"}])


def record_use(folder: RunFolder, *, questions: int, status: str, path: Path = USAGE_LOG) -> TestSetUsage:
    """Log that a run has evaluated the test split, and count all such runs. Several processes may call this at once.

    Args:
        folder: the run.
        questions: the number of its test questions.
        status: the status of the run.
        path: the log.

    Raises:
        OSError: the log cannot be written.
    """
    manifest = folder.manifest
    entry = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "configuration": configuration_digest(manifest),
        "run": str(folder.path),
        "started": manifest["created_at"],
        "data": manifest["identity"]["data"],
        "questions": questions,
        "status": status,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(path.name + ".lock")):
        with path.open("a+b") as file:
            if file.tell() and not _ends_with_newline(file):
                file.write(b"\n")  # an earlier write was interrupted, and its line still counts as a use
            file.write((json.dumps(entry) + "\n").encode("ascii"))
        return count_uses(entries(path), configuration=entry["configuration"], data=entry["data"])


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


def entries(path: Path = USAGE_LOG) -> list[dict[str, Any]]:
    """Return the entries of the log, oldest first. A damaged line becomes an entry with the field `run` only."""
    return [_entry(line) for line in path.read_text(errors="replace").splitlines() if line] if path.exists() else []


def _entry(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"run": line}


def count_uses(entries: Iterable[dict[str, Any]], *, configuration: str, data: str) -> TestSetUsage:
    """Count the runs on a data set, given its digest. Entries without a data digest count too."""
    on_data = [entry for entry in entries if entry.get("data", data) == data]
    runs = {(str(entry.get("run")), str(entry.get("started"))): entry.get("configuration") for entry in on_data}
    return TestSetUsage(sum(value == configuration for value in runs.values()), len(runs))


def _times(n: int) -> str:
    return {1: "once", 2: "twice"}.get(n, f"{n} times")


def duplicate_attempts(records: Iterable[Record]) -> list[str]:
    """Find attempts after an answer, and attempts without the attempt before them.

    Returns:
        One sentence per attempt found.
    """
    found = []
    attempts: dict[Key, list[Record]] = {}
    for record in records:
        earlier = attempts.setdefault(key(record), [])
        question = f"{record['question_id']} ({record['system']}, {record['budget_tokens']})"
        if any(is_answered(attempt) for attempt in earlier):
            found.append(f"{question} was repeated after an answer.")
        elif record["attempt"] != len(earlier) + 1:
            found.append(f"{question} has attempt {record['attempt']}, but attempt {len(earlier) + 1} was expected.")
        earlier.append(record)
    return found


def duplicates_message(duplicates: Sequence[str]) -> str:
    """Return the message for the result of `duplicate_attempts`; empty if there are none."""
    if not duplicates:
        return ""
    more = f" and {len(duplicates) - 1:,} more" if len(duplicates) > 1 else ""
    return f"INVALID: only failed attempts may be repeated: {duplicates[0]}{more}"
