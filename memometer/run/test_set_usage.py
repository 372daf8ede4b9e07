"""The ledger: how often the test conversations were scored here, and whether a run asked again what was answered.

    memometer test-usage [RUN...]      checks run folders, and says how often each configuration was scored

Every run that scores held-out conversations leaves a line in runs/ledger.jsonl of the working folder; runs imported
from others leave none. A configuration tried often and reported once is the best of n. Within a run only failed
attempts may be repeated: an answered attempt with another after it, or an attempt whose predecessor is gone, is the
mark of a run that was mended by hand. Lines edited in place leave no mark.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from memometer.run.environment import digest
from memometer.run.folder import Key, Record, RunFolder, RunFolderError, is_answered, key, read_manifest, read_records

LEDGER = Path("runs") / "ledger.jsonl"

HOW = {"data", "memory_url", "num_threads", "retries", "timeout_seconds", "fail_on_error", "cost_limit", "price",
       "judge_price", "max_false_accept", "no_calibration", "no_certificate", "wrong_answers", "no_mlflow",
       "trace"}  # fmt: skip
"""Flags that change no answer: runs that differ in these alone have one configuration. Data is known by its digest."""


@dataclass(frozen=True, slots=True)
class Looks:
    """How many runs have scored these test questions: under one configuration, and under any. A resumed run is one."""

    configuration: int
    all: int

    def __str__(self) -> str:
        return (
            f"The test split has been scored {_times(self.configuration)} under this configuration, "
            f"{_times(self.all)} in all here."
        )


def configuration(manifest: dict[str, Any]) -> str:
    """A digest of what shapes a run's answers: its flags, code, models, prompts and data."""
    flags = {name: value for name, value in manifest["config"].items() if name not in HOW}
    return digest([flags, {k: v for k, v in manifest["identity"].items() if k != "configuration"}])


def look(folder: RunFolder, *, questions: int, status: str, path: Path = LEDGER) -> Looks:
    """Write down that a run has scored the test split, and count. Safe in several processes at once. Raises OSError."""
    manifest = folder.manifest
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "configuration": configuration(manifest),
        "run": str(folder.path),
        "started": manifest["created_at"],
        "data": manifest["identity"]["data"],
        "questions": questions,
        "status": status,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(path.name + ".lock")):
        with path.open("a+b") as file:
            if file.tell() and not _ends_a_line(file):
                file.write(b"\n")  # a kill in the middle of a write; that look counts all the same
            file.write((json.dumps(line) + "\n").encode("ascii"))
        return count(lines(path), configuration=line["configuration"], data=line["data"])


def _ends_a_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


def lines(path: Path = LEDGER) -> list[dict[str, Any]]:
    """Every look, oldest first; of a line that cannot be read only that it is there."""
    return [_line(text) for text in path.read_text(errors="replace").splitlines() if text] if path.exists() else []


def _line(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"run": text}


def count(looks: Iterable[dict[str, Any]], *, configuration: str, data: str) -> Looks:
    """The runs in `looks` on this data; a line that does not name its data counts as one."""
    on_data = [line for line in looks if line.get("data", data) == data]
    runs = {(str(line.get("run")), str(line.get("started"))): line.get("configuration") for line in on_data}
    return Looks(sum(of == configuration for of in runs.values()), len(runs))


def _times(n: int) -> str:
    return {1: "once", 2: "twice"}.get(n, f"{n} times")


def broken(records: Iterable[Record]) -> list[str]:
    """A sentence for each question that was asked again after an answer, or whose earlier attempts are gone."""
    told = []
    earlier: dict[Key, list[Record]] = {}
    for record in records:
        before = earlier.setdefault(key(record), [])
        where = f"{record['question_id']} ({record['system']}, {record['budget_tokens']})"
        if any(is_answered(attempt) for attempt in before):
            told.append(f"{where} was answered and asked again.")
        elif record["attempt"] != len(before) + 1:
            told.append(f"{where} has an attempt {record['attempt']} where {len(before) + 1} was due.")
        before.append(record)
    return told


def verdict(told: Sequence[str]) -> str:
    """What to say of a run whose records were tampered with; empty for a sound one."""
    if not told:
        return ""
    more = f" and {len(told) - 1:,} more" if len(told) > 1 else ""
    return f"INVALID: only failed attempts may be repeated, and the records say otherwise: {told[0]}{more}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="memometer test-usage", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    args = parser.parse_args(argv)
    bad = False
    for path in args.runs:
        try:
            told, manifest = broken(read_records(path)), read_manifest(path)
        except (RunFolderError, OSError) as error:
            print(f"memometer.run.test_set_usage: {error}", file=sys.stderr)
            return 2
        bad = bad or bool(told)
        print(f"{path}: {verdict(told) or 'no question was asked again after an answer.'}")
        looks = count(lines(), configuration=configuration(manifest), data=manifest["identity"].get("data", ""))
        if looks.all:
            print(f"{path}: {looks}")
    if not args.runs:
        for line in lines():
            print(
                "  ".join(str(line.get(name, "?")) for name in ("time", "configuration", "status", "questions", "run"))
            )
    return 3 if bad else 0
