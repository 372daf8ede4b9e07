"""Run folders that are read while another process may still write them. The lock of a run is never taken."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memometer.report import viewer_data, write
from memometer.report.results import Run, compute_results, read_results
from memometer.run import shown_items
from memometer.run.folder import (
    Key,
    Record,
    RunFolderError,
    add_verdicts,
    changes,
    key,
    latest,
    read_manifest,
)
from memometer.run.record_lines import parse_lines, read_lines


class AppendedFile:
    """A file of JSON lines to which another process appends.

    Args:
        path: The file; it may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def new_lines(self) -> list[Record]:
        """Return the complete lines that were appended since the last call."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        complete = content[: content.rfind(b"\n") + 1]
        self._offset += len(complete)
        return parse_lines(complete, self.path)


class FollowedRun:
    """A run folder of which only new lines are read.

    Args:
        path: The run folder.
        name: The name of the run in reports.

    Raises:
        RunFolderError: The folder or its data cannot be read.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.manifest = read_manifest(path)
        self.data = write.data_of(path, self.manifest)
        self.records: list[Record] = []
        self.ingests: list[Record] = []
        self._counting: dict[Key, Record] = {}
        self._files = {kind: AppendedFile(path / f"{kind}.jsonl") for kind in ("records", "verdicts", "ingest")}
        self._rows = viewer_data.Rows(self.data)
        self._results: dict[str, Any] = {}
        self._stamp = ""

    def read(self) -> str:
        """Read what is new.

        Returns:
            A stamp that differs from the last one if anything was new.
        """
        if records := self._files["records"].new_lines():
            self.records += records
            self._counting = latest(self.records)
        add_verdicts(self._counting, self._files["verdicts"].new_lines())
        self.ingests += self._files["ingest"].new_lines()
        results = self.path / "results.json"
        written = results.stat().st_mtime_ns if results.exists() else 0
        return f"{written}-{len(self.records)}-{len(self.ingests)}-{sum(len(r['verdicts']) for r in self.records)}"

    def run(self) -> Run:
        """Return the run in its present state."""
        stamp = self.read()
        if stamp != self._stamp:
            results = self._newest_results()
            alarms = [write.alarm(change) for change in changes(self.path)]
            if alarms:
                warnings = dict.fromkeys([*results.get("warnings", ()), *alarms])
                results = {**results, "status": "invalid", "warnings": list(warnings)}
            self._results = results
            self._stamp = stamp
        return Run(self.name, self.manifest, self.records, self._results, self.data)

    def rows(self) -> list[dict[str, Any]]:
        """Return its answers as the report page lists them."""
        return self._rows.of(self.records)

    def _newest_results(self) -> dict[str, Any]:
        """results.json; if there are newer answers, what it would contain for the questions asked so far."""
        try:
            written = read_results(self.path)
        except RunFolderError:
            written = {}
        if written.get("records", len(self.records)) == len(self.records) and "systems" in written:
            return written
        config = self.manifest["config"]
        planned = list(dict.fromkeys(key(record) for record in self.records))
        facts = {
            "status": "unfinished",
            "split": config["split"],
            "subset": True,
            "reader": self.manifest.get("reader"),
            "judge": config.get("judge_model"),
            "token_counter": next((record["recall"]["counter"] for record in self.records), ""),
            "left_out": self.manifest.get("left_out", {}),
        }
        return compute_results(
            self.manifest,
            self.records,
            self.ingests,
            self.data,
            planned,
            facts,
            calibrations=read_lines(self.path / "calibrations.jsonl") or written.get("judge_calibrations", []),
            probes=read_lines(self.path / "probes.jsonl"),
            measurings=read_lines(self.path / "measuring.jsonl"),
            items=shown_items.texts(self.path),
        )


def follow(paths: Sequence[Path]) -> list[FollowedRun]:
    """Follow several runs, with their paths as names if the names of their folders are equal.

    Args:
        paths: Run folders.

    Returns:
        The runs.

    Raises:
        RunFolderError: A folder or its data cannot be read.
    """
    names = [path.resolve().name for path in paths]
    return [
        FollowedRun(path, name if names.count(name) == 1 else str(path))
        for path, name in zip(paths, names, strict=True)
    ]
