"""`memometer test-usage`: show how often this user has evaluated the test split of each data set."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

COLUMNS = ("time", "configuration", "status", "questions", "run")


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    return argparse.ArgumentParser(
        description="Show how often this user has evaluated the test split of each data set. `memometer verify RUN` "
        "checks a run.",
        allow_abbrev=False,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the log of test-set usage.

    Returns:
        0, or 3 if a log file was changed by hand.
    """
    parser().parse_args(argv)
    from memometer.run import usage_log
    from memometer.run.test_set_usage import FORMER_LOG

    changed = False
    for path in [FORMER_LOG, *sorted(usage_log.folder().glob("*.jsonl"))]:
        entries = usage_log.read(path)
        if entries:
            print(path)
        if path != FORMER_LOG and usage_log.is_changed(path):
            changed = True
            print("  This file was changed by hand; the uses that it lists may be too few.")
        for entry in entries:
            print("  " + "  ".join(str(entry.get(name, "?")) for name in COLUMNS))
    return 3 if changed else 0
