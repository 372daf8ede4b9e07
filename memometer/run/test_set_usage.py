"""The log of test-set usage, and the check for questions that were answered twice.

Every run that evaluates held-out conversations appends a line to the user's log of the data set (`usage_log`); imported
runs do not. If a configuration is evaluated n times and reported once, the reported result may be the best of n.

Within a run, only failed attempts may be repeated. An attempt after an answer, or a missing earlier attempt, shows that
records were added or removed by hand. `memometer.run.chain` detects edited and deleted records.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memometer.run import usage_log
from memometer.run.environment import digest
from memometer.run.folder import Key, Record, RunFolder, is_answered, key

FORMER_LOG = Path("runs") / "ledger.jsonl"
"""The log of earlier versions, in the working folder. Its lines still count."""

EXECUTION_OPTIONS = {
    "data", "memory_url", "num_threads", "retries", "timeout_seconds", "fail_on_error", "cost_limit", "price",
    "judge_price", "max_false_accept", "no_calibration", "no_certificate", "wrong_answers", "no_mlflow", "trace",
}  # fmt: skip
"""Options that change no answer and are not part of a configuration. Data is identified by its digest."""


@dataclass(frozen=True, slots=True)
class TestSetUsage:
    """The number of runs in this user's log that evaluated the test split; a resumed run counts once.

    Attributes:
        configuration: runs with the same configuration.
        all: runs with any configuration.
        since: date of the first entry of the log; empty if the log cannot be written.
    """

    __test__ = False  # pytest would collect it

    configuration: int
    all: int
    since: str = ""

    def __str__(self) -> str:
        if not self.since:
            return "The use of the test split is unknown, because the log of this user cannot be written."
        if self.all < 2:
            return "This is the first evaluation of the test split in this user's log. Earlier use is unknown."
        return (
            f"The test split has been evaluated {_times(self.configuration)} with this configuration and "
            f"{_times(self.all)} in total since {self.since}, by this user's log. Earlier use is unknown."
        )


def configuration_digest(manifest: dict[str, Any]) -> str:
    """Return a digest of everything that determines a run's answers: options, code, models, prompts and data."""
    options = {name: value for name, value in manifest["config"].items() if name not in EXECUTION_OPTIONS}
    return digest([options, {k: v for k, v in manifest["identity"].items() if k != "configuration"}])


def record_use(folder: RunFolder, *, questions: int, status: str) -> TestSetUsage:
    """Log that a run has evaluated the test split, and count all such runs. Several processes may call this at once.

    Args:
        folder: the run.
        questions: the number of its test questions.
        status: the status of the run.

    Returns:
        The number of runs, including this one.
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
    try:
        usage_log.append(usage_log.path_of(entry["data"]), entry)
    except OSError:  # a read-only home
        return TestSetUsage(1, 1)
    return count_uses(entries(entry["data"]), configuration=entry["configuration"], data=entry["data"])


def entries(data: str) -> list[dict[str, Any]]:
    """Return the uses of a data set, given its digest, oldest first."""
    return [*usage_log.read(FORMER_LOG), *usage_log.read(usage_log.path_of(data))]


def count_uses(log: Iterable[dict[str, Any]], *, configuration: str, data: str) -> TestSetUsage:
    """Count the runs on a data set, given its digest. Entries without a data digest count too."""
    on_data = [entry for entry in log if entry.get("data", data) == data]
    runs = {(str(entry.get("run")), str(entry.get("started"))): entry.get("configuration") for entry in on_data}
    since = min((str(entry["time"])[:10] for entry in on_data if entry.get("time")), default="")
    return TestSetUsage(sum(value == configuration for value in runs.values()), len(runs), since)


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
