"""The folder of a run: manifest.json (options and identity), records.jsonl (attempts), results.json (metrics).

Records are appended as answers arrive and never rewritten. A killed run loses at most the calls in flight, and every
metric can be computed again from the folder without a model.
"""

from __future__ import annotations

import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from memometer.run import chain, usage_log
from memometer.run.record_lines import Record as Record
from memometer.run.record_lines import RunFolderError as RunFolderError
from memometer.run.record_lines import read_lines

Key = tuple[str, int, str, str]
"""(system, budget in tokens, question id, option order): the identity of a task."""


ANCHOR_SECONDS = 2.0
"""A run saves the heads of its chains in the user's log at the first line of each file, then with the next line after
this time, and when it is closed."""


def needs_verdict(record: Record) -> bool:
    """True if an answer has no verdict with a label: it was not judged, or the judge failed."""
    return (
        is_answered(record)
        and record["answer"] is not None
        and not any(verdict["label"] != "missing" for verdict in record["verdicts"])
    )


def key(record: Record) -> Key:
    """The task that a record is an attempt at."""
    return record["system"], record["budget_tokens"], record["question_id"], record["option_order"]


def is_answered(record: Record) -> bool:
    """True if an attempt has a result: an answer, or a failure of the memory.

    If a model call failed there is no result. Only such attempts may be repeated.
    """
    return not record["error"]


def failed(record: Record) -> bool:
    """True if the memory failed, in ingest or in recall. Such an attempt has a result, which counts as wrong."""
    return bool(record.get("memory_error"))


class RunFolder:
    """An open run folder. It is locked against other processes until it is closed.

    Use `create` or `reopen` as context managers.

    Attributes:
        path: The folder.
        on_append: Called with file name and line after each line is on disk, one at a time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.on_append: Callable[[str, Record], None] = lambda *_: None
        self._write_lock = threading.Lock()
        self._heads: dict[str, chain.Head] = {}
        self._anchored = True
        self._files: dict[str, io.FileIO] = {}
        self._next_anchor = 0.0
        self._process_lock = FileLock(path / ".lock", blocking=False)
        try:
            self._process_lock.acquire()
        except Timeout as error:
            raise RunFolderError(
                f"{path} is in use by another process; wait until it ends, or name another folder."
            ) from error

    @classmethod
    def create(cls, path: Path, manifest: dict[str, Any]) -> RunFolder:
        """Start a run in a new or empty folder.

        Args:
            path: The folder.
            manifest: The content of manifest.json.

        Raises:
            RunFolderError: The folder is not empty, is in use, or cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(entry.name != ".lock" for entry in path.iterdir()):
                raise RunFolderError(
                    f"{path} is not empty; continue a run with --resume {path}, or name another folder with --run-dir."
                )
            folder = cls(path)
        except OSError as error:
            raise RunFolderError(f"{path} cannot be written ({error.strerror}); name another folder.") from error
        # Two runs with the same options may begin in the same second.
        folder.write_json("manifest.json", {"run_id": os.urandom(8).hex(), **manifest})
        return folder

    @classmethod
    def reopen(cls, path: Path, *, anchored: bool = True) -> RunFolder:
        """Open an existing run. An incomplete last line, which a killed process leaves, is removed.

        Args:
            path: The folder.
            anchored: False writes nothing into the user's log, for a copy of a run.

        Raises:
            RunFolderError: The folder holds no run or is in use.
        """
        read_manifest(path)
        folder = cls(path)
        folder._anchored = anchored
        for file in path.glob("*.jsonl"):
            content = file.read_bytes()
            if content and not content.endswith(b"\n"):
                os.truncate(file, content.rfind(b"\n") + 1)
        return folder

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._heads and self._anchored:
            usage_log.anchor(self._manifest, self._heads)
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._process_lock.release()

    @cached_property
    def _manifest(self) -> dict[str, Any]:
        """The manifest as the chains begin with it; its identity never changes."""
        content: dict[str, Any] = json.loads((self.path / "manifest.json").read_bytes())
        return content

    @property
    def manifest(self) -> dict[str, Any]:
        return read_manifest(self.path)

    def append(self, record: Record) -> None:
        """Append an attempt at a task."""
        self._append("records.jsonl", record)

    def append_verdict(self, of: Key, verdict: Record) -> None:
        """Append a further verdict on the answer to a task."""
        names = ("system", "budget_tokens", "question_id", "option_order")
        self._append("verdicts.jsonl", {**dict(zip(names, of, strict=True)), "verdict": verdict})

    def append_ingest(self, record: Record) -> None:
        """Append the cost of the ingest of one conversation into one system."""
        self._append("ingest.jsonl", record)

    def append_measuring(self, record: Record) -> None:
        """Append the cost of a judge calibration."""
        self._append("measuring.jsonl", record)

    def append_calibration(self, calibration: Record) -> None:
        """Append the judge calibration that the run uses, if it differs from the latest one."""
        if self.calibrations()[-1:] != [json.loads(json.dumps(calibration))]:
            self._append("calibrations.jsonl", calibration, cost=False)

    def append_probe(self, probe: Record) -> None:
        """Append a hidden probe with its verdict."""
        self._append("probes.jsonl", probe)

    def append_label(self, record: Record) -> None:
        """Append a human label of an answer."""
        self._append("labels.jsonl", record)

    def append_to(self, name: str, record: Record) -> None:
        """Append a line to a file whose lines cost nothing; `on_append` is not called."""
        self._append(name, record, cost=False)

    def _append(self, name: str, record: Record, *, cost: bool = True) -> None:
        with self._write_lock:
            file, first = self._opened(name)
            # ASCII, because a reply may contain half a surrogate pair, which UTF-8 cannot encode.
            line = json.dumps({**record, chain.FIELD: self._heads[name].digest}, separators=(",", ":")).encode("ascii")
            if file.write(line + b"\n") != len(line) + 1:
                raise OSError(f"{self.path / name} could not be written completely; is the disk full?")
            self._heads[name] = self._heads[name].after(line)
            if self._anchored and (first or time.monotonic() >= self._next_anchor):
                self._anchor()
            if cost:
                self.on_append(name, record)

    def _opened(self, name: str) -> tuple[io.FileIO, bool]:
        """Return a file for appending, which stays open, and True if it has no line of this process yet."""
        first = name not in self._files
        if first:
            path = self.path / name
            self._heads[name] = chain.read(path, self._manifest).head
            self._files[name] = path.open("ab", buffering=0)
        return self._files[name], first

    def _anchor(self) -> None:
        for name, file in self._files.items():
            if not os.fstat(file.fileno()).st_nlink:
                raise OSError(f"{self.path / name} was deleted")
        usage_log.anchor(self._manifest, self._heads)
        self._next_anchor = time.monotonic() + ANCHOR_SECONDS

    def records(self) -> list[Record]:
        """Every attempt, in the order of completion, with all verdicts on its answer, the latest last."""
        return read_records(self.path)

    def ingests(self) -> list[Record]:
        """The cost of each ingest, in the order of completion."""
        return read_lines(self.path / "ingest.jsonl")

    def measurings(self) -> list[Record]:
        """The cost of each judge calibration for this run."""
        return read_lines(self.path / "measuring.jsonl")

    def calibrations(self) -> list[Record]:
        """The judge calibrations that the run used, the latest last."""
        return read_lines(self.path / "calibrations.jsonl")

    def probes(self) -> list[Record]:
        """The hidden probes with their verdicts, in the order of completion."""
        return read_lines(self.path / "probes.jsonl")

    def labels(self) -> list[Record]:
        """The human labels, in the order in which they were given."""
        return read_lines(self.path / "labels.jsonl")

    def write_json(self, name: str, value: object) -> None:
        """Replace a file atomically."""
        text = json.dumps(value, indent=1) + "\n"
        if name == "results.json" and self._anchored:
            usage_log.anchor_results(self._manifest, text.encode())
        self.write_text(name, text)

    def write_text(self, name: str, text: str) -> None:
        """Replace a file atomically."""
        part = self.path / f".{name}.part"
        part.write_text(text, encoding="utf-8", errors="replace")
        part.replace(self.path / name)


def changes(path: Path) -> list[str]:
    """List the places where the files of a run were changed by hand, by their chains and the user's anchors.

    Args:
        path: The run folder.

    Returns:
        One sentence per change.

    Raises:
        RunFolderError: The folder holds no run.
    """
    manifest = read_manifest(path)
    found = chain.problems(chain.read_all(path, manifest), usage_log.anchors(manifest))
    results = path / "results.json"
    if results.exists() and usage_log.is_results_changed(manifest, results.read_bytes()):
        found.append("results.json was changed after it was written.")
    return found


def latest(records: Iterable[Record]) -> dict[Key, Record]:
    """The attempt that counts for each task: the first with a result, otherwise the last."""
    chosen: dict[Key, Record] = {}
    for record in records:
        earlier = chosen.get(key(record))
        if earlier is None or not is_answered(earlier):
            chosen[key(record)] = record
    return chosen


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a run. No lock is needed.

    Raises:
        RunFolderError: The folder holds no run, or the manifest is damaged.
    """
    if not (path / "manifest.json").is_file():
        raise RunFolderError(f"{path} holds no run (no manifest.json); name the folder of a run.")
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        return {"config": dict(manifest["config"]), "identity": dict(manifest["identity"]), **manifest}
    except (ValueError, TypeError, KeyError) as error:
        raise RunFolderError(f"{path / 'manifest.json'} is damaged ({error!r}); start a new run.") from error


def evaluation_options(manifest: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The options of an evaluation or of imported results.

    Args:
        manifest: The manifest.
        path: Its folder, for the message.

    Raises:
        RunFolderError: It is a run of another command.
    """
    config = dict(manifest["config"])
    if missing := [name for name in ("split", "categories", "num_test", "seed", "fail_on_error") if name not in config]:
        raise RunFolderError(
            f"{path} is not a run of this version of evaluate.py or memometer import-results (its configuration "
            f"lacks {missing[0]})."
        )
    return config


def read_records(path: Path) -> list[Record]:
    """Return the records as `RunFolder.records` does, without a lock. The run may be in progress."""
    records = read_lines(path / "records.jsonl")
    _only_exact_turns(records)
    add_verdicts(latest(records), read_lines(path / "verdicts.jsonl"))
    return records


def _only_exact_turns(records: Iterable[Record]) -> None:
    """If a system did not always name exact turns, none of its records has `turn_ids`, and so none a recall."""
    records = list(records)
    inexact = {r["system"] for r in records if r["recall"].get("provenance", "turn") != "turn"}
    for record in records:
        if record["system"] in inexact:
            record["recall"]["turn_ids"] = None


def add_verdicts(counting: Mapping[Key, Record], lines: Iterable[Record]) -> None:
    """Add the lines of verdicts.jsonl to the records that they belong to."""
    for line in lines:
        if (record := counting.get(key(line))) is not None:
            record["verdicts"].append(line["verdict"])


def new_path(root: Path = Path("runs")) -> Path:
    """A new folder name that sorts by time."""
    return root / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.urandom(2).hex()}"
