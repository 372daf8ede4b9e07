"""`memometer test-usage`: show how often the test split has been evaluated, and check run folders."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from memometer.errors import UserError

COLUMNS = ("time", "configuration", "status", "questions", "run")


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    p = argparse.ArgumentParser(
        description="Show how often the test split has been evaluated in this folder. With run folders, check that no "
        "question was repeated after an answer; exit code 3 if one was.",
        allow_abbrev=False,
    )
    p.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Print the log of test-set usage, or check run folders.

    Returns:
        0, or 3 if a question was repeated after an answer.

    Raises:
        UserError: a run folder cannot be read.
    """
    from memometer.run import test_set_usage as usage
    from memometer.run.folder import read_manifest, read_records

    args = parser().parse_args(argv)
    invalid = False
    for path in args.runs:
        try:
            duplicates, manifest = usage.duplicate_attempts(read_records(path)), read_manifest(path)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error}") from error
        invalid = invalid or bool(duplicates)
        print(f"{path}: {usage.duplicates_message(duplicates) or 'no question was repeated after an answer.'}")
        configuration, data = usage.configuration_digest(manifest), manifest["identity"].get("data", "")
        count = usage.count_uses(usage.entries(), configuration=configuration, data=data)
        if count.all:
            print(f"{path}: {count}")
    if not args.runs:
        for entry in usage.entries():
            print("  ".join(str(entry.get(name, "?")) for name in COLUMNS))
    return 3 if invalid else 0
