"""A run on disk: what was asked (manifest.json), what came back (records.jsonl), what it amounts to (results.json).

Records are appended one line at a time as answers arrive and are never rewritten: a killed run loses at most the
calls in flight, and every metric can be computed again from the folder without a model.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from memometer.errors import UserError

Record = dict[str, Any]
"""One attempt at one question, as `memometer.harness.loop` writes it."""

Key = tuple[str, int, str, str]
"""(system, budget in tokens, question id, form): what makes an answer the answer to something."""


FIELDS = ("system", "budget_tokens", "question_id", "form", "attempt", "answer", "recall", "verdicts", "error", "model",
          "calls", "unreported", "prompt_tokens", "completion_tokens", "seconds", "truncated")  # fmt: skip
"""What every record holds, whoever made it."""
VERDICT_FIELDS = ("judge", "prompt", "label")


class RunFolderError(UserError, ValueError):
    """The folder cannot be used as asked; the message is one sentence for the user."""


def needs_verdict(record: Record) -> bool:
    """Whether an answer was never graded: its judge failed, or gave no label."""
    return (
        is_answered(record)
        and record["answer"] is not None
        and not any(verdict["label"] != "missing" for verdict in record["verdicts"])
    )


def key(record: Record) -> Key:
    """What a record is the answer to."""
    return record["system"], record["budget_tokens"], record["question_id"], record["form"]


def is_answered(record: Record) -> bool:
    """Whether an attempt ended with a result: an answer, or a failure of the memory. Where a model's call failed there
    is none; such attempts may be made again, and only they."""
    return not record["error"]


def failed(record: Record) -> bool:
    """Whether the memory itself failed, in reading the conversation or in recalling: a result, and a wrong one."""
    return bool(record.get("memory_error"))


class RunFolder:
    """One run, locked against a second process for as long as it is open.

    Use `create` or `reopen`, as context managers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.on_append: Callable[[str, Record], None] = lambda *_: None
        """Told of every line once it is on disk, one at a time."""
        self._write_lock = threading.Lock()
        self._process_lock = FileLock(path / ".lock", blocking=False)
        try:
            self._process_lock.acquire()
        except Timeout as error:
            raise RunFolderError(
                f"{path} is in use by another process; wait for it, or name another folder."
            ) from error

    @classmethod
    def create(cls, path: Path, manifest: dict[str, Any]) -> RunFolder:
        """Start a run in a new or empty folder. Raises RunFolderError when it holds anything already, or cannot be
        written."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(entry.name != ".lock" for entry in path.iterdir()):
                raise RunFolderError(
                    f"{path} is not empty; continue a run with --resume {path}, or name another folder with --run-dir."
                )
            folder = cls(path)
        except OSError as error:
            raise RunFolderError(f"{path} cannot be written ({error.strerror}); name another folder.") from error
        folder.write_json("manifest.json", manifest)
        return folder

    @classmethod
    def reopen(cls, path: Path) -> RunFolder:
        """Continue a run: an unfinished last line, left by a kill in the middle of a write, is cut off."""
        read_manifest(path)
        folder = cls(path)
        for file in path.glob("*.jsonl"):
            content = file.read_bytes()
            if content and not content.endswith(b"\n"):
                os.truncate(file, content.rfind(b"\n") + 1)
        return folder

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process_lock.release()

    @property
    def manifest(self) -> dict[str, Any]:
        return read_manifest(self.path)

    def append(self, record: Record) -> None:
        """Keep one attempt at a question."""
        self._append("records.jsonl", record)

    def append_verdict(self, of: Key, verdict: Record) -> None:
        """Keep a later verdict on an answer, beside the earlier ones."""
        names = ("system", "budget_tokens", "question_id", "form")
        self._append("verdicts.jsonl", {**dict(zip(names, of, strict=True)), "verdict": verdict})

    def append_ingest(self, record: Record) -> None:
        """Keep what reading one conversation into one system cost."""
        self._append("ingest.jsonl", record)

    def append_measuring(self, record: Record) -> None:
        """Keep what measuring a judge cost, before it graded."""
        self._append("measuring.jsonl", record)

    def _append(self, name: str, record: Record) -> None:
        # ASCII, because a model's reply may hold half a surrogate pair, which UTF-8 cannot write.
        line = json.dumps(record, separators=(",", ":")) + "\n"
        with self._write_lock, (self.path / name).open("ab", buffering=0) as file:
            if file.write(line.encode("ascii")) != len(line):
                raise OSError(f"{self.path / name} could not be written whole; is the disk full?")
            self.on_append(name, record)

    def records(self) -> list[Record]:
        """Every attempt, in the order in which they ended, with all verdicts on its answer, the latest last."""
        return read_records(self.path)

    def ingests(self) -> list[Record]:
        """What each reading of a conversation cost, in the order of the readings."""
        return read_lines(self.path / "ingest.jsonl")

    def measurings(self) -> list[Record]:
        """What each measuring of a judge cost that was made for this run."""
        return read_lines(self.path / "measuring.jsonl")

    def write_json(self, name: str, value: object) -> None:
        """Replace a file atomically."""
        self.write_text(name, json.dumps(value, indent=1) + "\n")

    def write_text(self, name: str, text: str) -> None:
        part = self.path / f".{name}.part"
        part.write_text(text, encoding="utf-8", errors="replace")
        part.replace(self.path / name)


def latest(records: Iterable[Record]) -> dict[Key, Record]:
    """The record that counts for each question: its first answered attempt, else its last failed one."""
    chosen: dict[Key, Record] = {}
    for record in records:
        earlier = chosen.get(key(record))
        if earlier is None or not is_answered(earlier):
            chosen[key(record)] = record
    return chosen


def read_manifest(path: Path) -> dict[str, Any]:
    """What was asked, of the run in the folder `path`; needs no lock."""
    if not (path / "manifest.json").is_file():
        raise RunFolderError(f"{path} holds no run (no manifest.json); give the folder of an earlier run.")
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        return {"config": dict(manifest["config"]), "identity": dict(manifest["identity"]), **manifest}
    except (ValueError, TypeError, KeyError) as error:
        raise RunFolderError(f"{path / 'manifest.json'} is damaged ({error!r}); start a new run.") from error


def asked_of(manifest: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The configuration of a run that asks questions. Raises RunFolderError where the folder `path` holds another."""
    config = dict(manifest["config"])
    if missing := [name for name in ("split", "categories", "num_test", "seed", "fail_on_error") if name not in config]:
        raise RunFolderError(
            f"{path} is not a run of this version of evaluate.py or memometer import-results (its configuration "
            f"lacks {missing[0]})."
        )
    return config


def read_records(path: Path) -> list[Record]:
    """`RunFolder.records` of the folder `path`; needs no lock, and may be called while the run goes on."""
    records = read_lines(path / "records.jsonl")
    add_verdicts(latest(records), read_lines(path / "verdicts.jsonl"))
    return records


def add_verdicts(counting: Mapping[Key, Record], lines: Iterable[Record]) -> None:
    """Put lines of verdicts.jsonl on the records that they are about."""
    for line in lines:
        if (record := counting.get(key(line))) is not None:
            record["verdicts"].append(line["verdict"])


def read_lines(path: Path) -> list[Record]:
    """The whole lines of a file; one that is still being written, at the end, is none."""
    if not path.exists():
        return []
    content = path.read_bytes()
    return parse_lines(content[: content.rfind(b"\n") + 1], path)


def parse_lines(content: bytes, path: Path) -> list[Record]:
    """Whole lines of JSON, out of the file `path`."""
    try:
        lines = [json.loads(line) for line in content.split(b"\n") if line]
    except (ValueError, RecursionError) as error:
        raise RunFolderError(
            f"{path} holds a line that is not JSON ({error}); restore the file or start anew."
        ) from error
    for line in lines:
        _upgrade_verdicts(line)
    if missing := next(filter(None, (_missing(line, path.name) for line in lines)), ""):
        raise RunFolderError(
            f"{path} holds a line that is no record of this version (it has no {missing}); restore the file or start "
            "anew."
        )
    return lines


def _upgrade_verdicts(line: Any) -> None:
    """Rename the fields of verdicts that earlier versions wrote: `key`, and the label `ungraded`."""
    if not isinstance(line, dict):
        return
    verdicts = line.get("verdicts") or []
    for verdict in (*(verdicts if isinstance(verdicts, list) else ()), line.get("verdict")):
        if isinstance(verdict, dict):
            if "key" in verdict:
                verdict["label_set"] = verdict.pop("key")
            if verdict.get("label") == "ungraded":
                verdict["label"] = "missing"


def _missing(line: Any, name: str) -> str:
    """What a line of records.jsonl or verdicts.jsonl lacks; empty where it lacks nothing."""
    if not isinstance(line, dict):
        return "fields"
    fields = {"records.jsonl": FIELDS, "verdicts.jsonl": (*FIELDS[:4], "verdict")}.get(name, ())
    if missing := [field for field in fields if field not in line]:
        return missing[0]
    verdicts = line["verdicts"] if name == "records.jsonl" else [line["verdict"]] if "verdict" in line else []
    for verdict in verdicts:
        if not isinstance(verdict, dict) or any(field not in verdict for field in VERDICT_FIELDS):
            return "verdict of a judge and a prompt"
    return ""


def new_path(root: Path = Path("runs")) -> Path:
    """A folder name that sorts by time and does not collide."""
    return root / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.urandom(2).hex()}"
