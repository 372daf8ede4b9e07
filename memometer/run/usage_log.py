"""The user's log files about test sets: uses, and anchors of runs. They are chained and outside the working folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from memometer.run import chain
from memometer.run.environment import user_data_folder

Entry = dict[str, Any]


def folder() -> Path:
    """Return the folder of the log files, in the user's data folder."""
    return user_data_folder() / "test-set-usage"


def path_of(data: str, run: str = "") -> Path:
    """Return the path of a log file.

    Args:
        data: Digest of the data set.
        run: Digest that identifies a run, for its anchors; empty for the uses of the data set.

    Returns:
        The path, in the user's data folder.
    """
    name = f"{data[:16] or 'unknown'}.jsonl"
    return folder() / (f"anchors/{run}-{name}" if run else name)


def append(path: Path, entry: Entry) -> None:
    """Append an entry. Several processes may call this at once.

    Args:
        path: The log file; it is created.
        entry: The entry.

    Raises:
        OSError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(path.name + ".lock")), path.open("a+b") as file:
        if file.tell() and not _ends_with_newline(file):
            file.write(b"\n")  # an earlier write was interrupted, and its line still counts
            file.flush()
        head = chain.read(path, {}).head
        file.write(json.dumps({**entry, chain.FIELD: head.digest}).encode("ascii") + b"\n")


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


def read(path: Path) -> list[Entry]:
    """Return the entries of a log file, oldest first. A damaged line becomes an entry with the field `run` only."""
    return [_entry(line) for line in path.read_text(errors="replace").splitlines() if line] if path.exists() else []


def _entry(line: str) -> Entry:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"run": line}


def is_changed(path: Path) -> bool:
    """True if a line of the log file does not follow from the lines before it."""
    return chain.read(path, {}).broken_at is not None


def anchor(manifest: Mapping[str, Any], heads: Mapping[str, chain.Head]) -> None:
    """Save the heads of a run's files, so that a later change of the files is found.

    Nothing is saved if the user's data folder cannot be written; the run is then not attested.

    Args:
        manifest: The manifest of the run.
        heads: File -> head.
    """
    saved = {name: {"lines": head.lines, "digest": head.digest} for name, head in heads.items()}
    with suppress(OSError):  # a read-only home; verify reports that the run is not attested
        append(_anchors_of(manifest), saved)


def anchor_results(manifest: Mapping[str, Any], content: bytes) -> None:
    """Save the digest of a results.json before it is written.

    Args:
        manifest: The manifest of the run.
        content: The content of the file.
    """
    with suppress(OSError):  # as above
        append(_anchors_of(manifest), {"results": hashlib.sha256(content).hexdigest()})


def is_results_changed(manifest: Mapping[str, Any], content: bytes) -> bool:
    """True if this user wrote results of the run, but none with this content."""
    saved = {entry["results"] for entry in read(_anchors_of(manifest)) if "results" in entry}
    return bool(saved) and hashlib.sha256(content).hexdigest() not in saved


def anchors(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the saved heads of a run, oldest first; empty if this user did not write the run."""
    found = [
        {name: saved for name, saved in entry.items() if isinstance(saved, dict)}
        for entry in read(_anchors_of(manifest))
    ]
    return [heads for heads in found if heads]


def _anchors_of(manifest: Mapping[str, Any]) -> Path:
    return path_of(str(manifest.get("identity", {}).get("data") or ""), chain.beginning(manifest).digest)
