"""`memometer verify`: check that a run was not changed by hand, and compute its results again from its records."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

RECOMPUTED = ("status", "systems", "comparisons", "withheld", "missing_share", "human_labels", "hidden_probes")
"""Fields of results.json that depend on the records alone."""
FORMER = tuple(f"{name}{part}" for name in ("judge_corrected", "corrected") for part in ("", "_interval", "_reason"))
"""Metrics that earlier versions computed."""


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    options = argparse.ArgumentParser(
        description="Check that each line of a run follows from the lines before it, that no line of the user's log is "
        "missing, that no question was repeated after an answer, and that results.json is what the records give. "
        "Exit code 3 if a check fails. A run that another user wrote, or whose log was deleted, is at best "
        "consistent, not attested.",
        allow_abbrev=False,
    )
    options.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Check run folders.

    Returns:
        0, or 3 if a run was changed.

    Raises:
        UserError: A run or its data cannot be read.
    """
    args = parser().parse_args(argv)
    from memometer.run import usage_log
    from memometer.run.folder import read_manifest

    failed = False
    for path in args.runs:
        problems = list(dict.fromkeys(_problems(path)))
        for problem in problems:
            print(f"{path}: {problem}")
        failed = failed or bool(problems)
        if problems:
            print(f"{path}: CHANGED. Restore the files, or start a new run.")
        elif usage_log.anchors(read_manifest(path)):
            print(f"{path}: consistent, and attested by the log of this user.")
        else:
            print(f"{path}: consistent, unattested: the log of this user has no entry of this run.")
    return 3 if failed else 0


def _problems(path: Path) -> Iterator[str]:
    from memometer.harness.rescore import rewrite_results
    from memometer.judging.rerun_detection import of_records
    from memometer.report.results import STATISTICS, read_results
    from memometer.report.write import data_of
    from memometer.run.folder import RunFolder, changes, read_manifest, read_records
    from memometer.run.test_set_usage import duplicate_attempts

    yield from changes(path)
    yield from duplicate_attempts(read_records(path))
    yield from of_records(read_records(path))
    if not (path / "results.json").exists():
        return
    saved = read_results(path)
    if saved.get("status") not in ("valid", "invalid"):
        return  # the results of an unfinished run also depend on what was planned
    data = data_of(path, read_manifest(path))
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "run"
        shutil.copytree(path, copy, ignore=shutil.ignore_patterns(".lock", "report.*"))
        with RunFolder.reopen(copy, anchored=False) as folder:
            computed, _ = rewrite_results(folder, data)
    if saved.get("statistics") != STATISTICS:  # earlier versions had other intervals and tests
        saved, computed = _without_intervals(saved), _without_intervals(computed)
    for name in RECOMPUTED:
        if (place := _difference(saved.get(name), computed.get(name), name)) and name in saved:
            yield f"results.json differs from its records in {place}."


def _without_intervals(results: Any) -> Any:
    """Results without intervals and comparisons of systems."""
    if isinstance(results, list):
        return [_without_intervals(value) for value in results]
    if not isinstance(results, Mapping):
        return results
    dropped = ("comparisons", "gap_closed", "low", "high", "corrected")
    return {
        name: _without_intervals(value)
        for name, value in results.items()
        if name not in dropped and not name.endswith("interval")
    }


def _difference(saved: Any, computed: Any, place: str) -> str:
    """The first place at which two JSON values differ; empty if they are equal up to rounding."""
    if isinstance(saved, Mapping) and isinstance(computed, Mapping):
        for name in (name for name in saved if name not in FORMER):  # later versions compute further metrics
            if found := _difference(saved.get(name), computed.get(name), f"{place}, {name}"):
                return found
        return ""
    if isinstance(saved, list) and isinstance(computed, list) and len(saved) == len(computed):
        pairs = enumerate(zip(saved, computed, strict=True))
        return next(filter(None, (_difference(a, b, f"{place}, {n}") for n, (a, b) in pairs)), "")
    if isinstance(saved, float) and isinstance(computed, int | float):
        return "" if abs(saved - computed) <= 1e-9 else f"{place} ({saved:.6g} instead of {computed:.6g})"
    return "" if saved == computed or (saved in (None, {}, []) and computed in (None, {}, [])) else place
